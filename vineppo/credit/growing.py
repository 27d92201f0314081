"""Sampling a tree: vines from states of the rollouts of a group, and where they are asked for vines of vines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vineppo.credit.branching import Branch
from vineppo.credit.states import sample_vines, state_at
from vineppo.environment import Environment, GradedCompletion, State
from vineppo.episode import join_masks
from vineppo.rollouts import make_rollout
from vineppo.types import Group, Rollout

Plan = Callable[[Rollout], dict[int, int]]
"""K of every state of a response that shall have vines, by its position, in order. A stopping rule: what it says of a
state depends on nothing that was drawn after it."""


@dataclass(frozen=True)
class Fork:
    """A state of a response that lacks vines."""

    tree: list[Branch]
    branch: Branch  # the first that came by
    number: int  # of the state among its boundaries
    num_vines: int

    @property
    def position(self) -> int:
        return self.branch.boundaries[self.number]

    @cached_property
    def state(self) -> State:
        return state_at(self.branch.rollout, self.position)


def grow(
    environment: Environment, groups: Sequence[Group], plan: Plan, *, depth: int | None = None, seed: int
) -> list[list[Branch]]:  # [P][N]
    """The rollouts of each group, then the vines.

    Without a `depth` only rollouts have vines, all sampled in one engine call. With one the first `depth` states of
    vines have vines too, a call for each, as all that pass a state must be there before it is known what it lacks.
    """
    trees = [
        [Branch(rollout, boundaries_of(rollout, plan(rollout)), root=g) for g, rollout in enumerate(group)]
        for group in groups
    ]
    for number in [None] if depth is None else range(1, 1 + depth):
        lacking = [fork for tree in trees for fork in find_forks(tree, plan, number)]
        plant(environment, lacking, plan, keep=depth is not None, seed=seed)
    return trees


def boundaries_of(rollout: Rollout, planned: dict[int, int]) -> tuple[int, ...]:  # [S+1]
    """The prompt, the states that have vines, and the end."""
    return (0, *planned, len(rollout.token_ids))


def find_forks(tree: list[Branch], plan: Plan, number: int | None) -> Iterator[Fork]:
    """Of the state with that number in every response, or of all states.

    A state is one state for all that come by, and they count: 1 + K continuations leave it, or as many as came by.
    """
    found: dict[tuple[int, ...], tuple[Branch, int, int]] = {}
    passed: Counter[tuple[int, ...]] = Counter()
    for branch in tree:
        for n, (position, k) in enumerate(plan(branch.rollout).items(), start=1):
            if position > branch.start and number in (None, n):
                prefix_ids = branch.rollout.token_ids[:position]
                found.setdefault(prefix_ids, (branch, n, k))
                passed[prefix_ids] += 1
    for prefix_ids, (branch, n, k) in found.items():
        if passed[prefix_ids] <= k:
            yield Fork(tree, branch, n, 1 + k - passed[prefix_ids])


def plant(environment: Environment, forks: Sequence[Fork], plan: Plan, *, keep: bool, seed: int) -> None:
    """The vines that each lacks, within what the response had left there; into its tree."""
    states = [fork.state for fork in forks]
    budgets = [fork.branch.rollout.budget_at(fork.position) for fork in forks]
    vines = sample_vines(environment, states, budgets, [fork.num_vines for fork in forks], seed=seed, keep=keep)
    for fork, vine in ((fork, vine) for fork, siblings in zip(forks, vines, strict=True) for vine in siblings):
        rollout = continue_rollout(environment, fork.branch.rollout, fork.position, vine)
        later = {position: k for position, k in plan(rollout).items() if position > fork.position}
        boundaries = (*fork.branch.boundaries[: fork.number + 1], *boundaries_of(rollout, later)[1:])
        fork.tree.append(Branch(rollout, boundaries, fork.position, fork.branch.root))


def continue_rollout(environment: Environment, rollout: Rollout, position: int, vine: GradedCompletion) -> Rollout:
    """The whole response of which `vine` is what follows the rollout's first `position` tokens."""
    before, after = rollout.completion, vine.completion
    completion = replace(
        after,
        token_ids=before.token_ids[:position] + after.token_ids,
        logprobs=before.logprobs[:position] + after.logprobs,
        alternatives=before.alternatives and after.alternatives and before.alternatives[:position] + after.alternatives,
    )
    start = State(rollout.problem, rollout.prompt_ids)
    shared = state_at(rollout, position)
    mask = join_masks(shared.response_ids, shared.action_mask, after.token_ids, vine.action_mask)
    whole = replace(vine, completion=completion, action_mask=mask)
    return make_rollout(environment, start, whole, rollout.max_new_tokens)
