"""Tree: vines that are trained on, as many as the recipe plants at each state, in one response or in a whole tree.

TRPO's vine (Schulman et al. 2015, section 5.2) takes actions from states of a first trajectory and learns from them;
VinePPO measures with such vines and learns from none. Here every sampled token may be learnt from. Formulas, and why
they are unbiased: branching.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vineppo.config import Named
from vineppo.credit.branching import Branch, Tree, state_values, tree_advantages, tree_weights
from vineppo.credit.common import CreditContext, advantage_metrics, value_metrics
from vineppo.environment import Environment, GradedCompletion, State
from vineppo.rollouts import make_rollout
from vineppo.seeding import derive_seed
from vineppo.types import Assigned, Credit, ExtraRollout, Group, Rollout

NumVines = Annotated[int, Field(ge=0)]

MAX_LEAVES = 4096
"""Of one rollout's tree."""


class TreeConfig(Named):
    compares_group: ClassVar[bool] = True
    weighs_tokens: ClassVar[bool] = True
    name: str = "tree"
    num_vines: NumVines | tuple[NumVines, ...] = 1
    """Continuations (K) of a state besides the first one: the same at every state behind the prompt, or those of the
    first, second, .. of them, and none of later ones. Siblings that come by a state count among them."""
    shape: Literal["vines", "tree"] = "vines"
    """Whether only rollouts have vines, or vines have vines too."""
    train: Literal["all", "first"] = "all"
    """Which tokens of a vine are learnt from: all, or those up to the next state."""
    baseline_prior: float = Field(default=1.0, ge=0)
    """How many of its siblings the baseline of the state before counts for, in the baseline of a response."""

    @model_validator(mode="after")
    def trees_are_finite(self) -> TreeConfig:
        if self.shape == "vines":
            return self
        if isinstance(self.num_vines, int):
            raise ValueError(
                'shape = "tree" with one number of vines for all states has no end; give num_vines as a list, '
                "of the first, second, .. state"
            )
        if prod(1 + k for k in self.num_vines) > MAX_LEAVES:
            raise ValueError(f"num_vines = {list(self.num_vines)} makes a tree of more than {MAX_LEAVES} responses")
        if self.train == "first":
            raise ValueError('train = "first" learns nothing from vines of vines; it goes with shape = "vines"')
        return self

    def vines_at(self, number: int) -> int:
        """K of state `number`, from 1: the prompt is number 0 and has the group."""
        if isinstance(self.num_vines, int):
            return self.num_vines
        return self.num_vines[number - 1] if number <= len(self.num_vines) else 0


@dataclass(frozen=True)
class Fork:
    """A state of a response that still lacks vines."""

    tree: list[Branch]
    branch: Branch  # the first that came by
    number: int  # of the state among its boundaries
    num_vines: int

    @property
    def position(self) -> int:
        return self.branch.boundaries[self.number]

    @cached_property
    def state(self) -> State:
        rollout = self.branch.rollout
        return State(rollout.problem, rollout.prompt_ids, rollout.token_ids[: self.position])


class TreeCredit:
    Config = TreeConfig

    def __init__(self, config: TreeConfig, context: CreditContext):
        self.config = config
        self.environment = context.environment

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        trees = [
            [Branch(rollout, self.boundaries(rollout), root=g) for g, rollout in enumerate(group)] for group in groups
        ]
        self.grow(trees, seed)
        credited = [self.credit(Tree(branches)) for branches in trees]
        credits = [of_tree[: len(group)] for group, of_tree in zip(groups, credited, strict=True)]
        firsts = accumulate(map(len, groups), initial=0)
        extra = tuple(
            make_extra(branch, credit, root=first + branch.root)
            for first, branches, of_tree in zip(firsts, trees, credited, strict=False)
            for branch, credit in zip(branches, of_tree, strict=True)
            if branch.start > 0
        )
        return Assigned(credits, tree_metrics(trees, credited), extra)

    def boundaries(self, rollout: Rollout) -> tuple[int, ...]:  # [S+1]
        """The prompt, the states that have vines, and the end."""
        return (0, *self.num_vines(rollout), len(rollout.token_ids))

    def num_vines(self, rollout: Rollout) -> dict[int, int]:
        """K of every state that has vines, by its position."""
        states = enumerate(rollout.boundaries[1:-1], start=1)
        return {position: k for number, position in states if (k := self.config.vines_at(number))}

    def grow(self, trees: Sequence[list[Branch]], seed: int) -> None:
        """Plants vines: all in one engine call; or state after state where vines have vines, which must pass first."""
        if isinstance(self.config.num_vines, int) or self.config.shape == "vines":
            self.plant(trees, None, seed)
        else:
            for number in range(1, 1 + sum(map(bool, self.config.num_vines))):
                self.plant(trees, number, seed)

    def plant(self, trees: Sequence[list[Branch]], number: int | None, seed: int) -> None:
        """At the state `number` of every response that has vines, or at all."""
        lacking = [fork for tree in trees for fork in self.forks(tree, number)]
        jobs = [(fork, k) for fork in lacking for k in range(fork.num_vines)]
        vines = self.environment.finish(
            [fork.state for fork, _ in jobs],
            [fork.branch.rollout.max_new_tokens - fork.position for fork, _ in jobs],
            [derive_seed(seed, "vine", fork.state.problem.id, fork.state.prefix_ids, k) for fork, k in jobs],
            purpose="vine",
            keep=self.config.shape == "tree",
        )
        for (fork, _), vine in zip(jobs, vines, strict=True):
            rollout = continue_rollout(self.environment, fork.branch.rollout, fork.position, vine)
            behind = (b for b in self.boundaries(rollout) if b > fork.position)
            boundaries = (*fork.branch.boundaries[: fork.number + 1], *behind)
            fork.tree.append(Branch(rollout, boundaries, fork.position, fork.branch.root))

    def forks(self, tree: list[Branch], number: int | None) -> Iterator[Fork]:
        """A state is one state for all that come by it, and they count: vines make up for what it lacks."""
        found: dict[tuple[int, ...], tuple[Branch, int, int]] = {}
        passed: Counter[tuple[int, ...]] = Counter()
        for branch in tree:
            for n, (position, k) in enumerate(self.num_vines(branch.rollout).items(), start=1):
                if position > branch.start and number in (None, n):
                    prefix_ids = branch.rollout.token_ids[:position]
                    found.setdefault(prefix_ids, (branch, n, k))
                    passed[prefix_ids] += 1
        for prefix_ids, (branch, n, k) in found.items():
            if passed[prefix_ids] <= k:
                yield Fork(tree, branch, n, 1 + k - passed[prefix_ids])

    def credit(self, tree: Tree) -> list[Credit]:  # [N]
        advantages = tree_advantages(tree, prior=self.config.baseline_prior)
        weights = tree_weights(tree, self.config.train)
        values = state_values(tree)
        return [
            Credit(branch.boundaries, tuple(a), tuple(v) if branch.start == 0 else None, weights=tuple(w))
            for branch, a, v, w in zip(tree.branches, advantages, values, weights, strict=True)
        ]


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
    return make_rollout(environment, start, replace(vine, completion=completion), rollout.max_new_tokens)


def make_extra(branch: Branch, credit: Credit, root: int) -> ExtraRollout:
    """Tokens that are not its own, or count nothing, are no actions."""
    assert credit.weights is not None
    mask = tuple(t >= branch.start and weight > 0 for t, weight in enumerate(credit.weights))
    return ExtraRollout(replace(branch.rollout, action_mask=mask), credit, root=root)


def tree_metrics(trees: Sequence[Sequence[Branch]], credited: Sequence[Sequence[Credit]]) -> dict[str, float]:
    pairs = [pair for row in zip(trees, credited, strict=True) for pair in zip(*row, strict=True)]
    vines = [branch.rollout for branch, _ in pairs if branch.start > 0]
    values = [credit.values for _, credit in pairs if credit.values]
    advantages = [credit.advantages[b] for branch, credit in pairs for b in branch.boundaries[:-1] if b >= branch.start]
    return {
        **value_metrics([value for of_one in values for value in of_one[:-1]], [of_one[0] for of_one in values]),
        **advantage_metrics(advantages),
        "credit/num_states": sum(len(of_one) - 1 for of_one in values),
        "credit/num_vines": len(vines),
        "credit/num_vines_truncated": sum(vine.completion.finish_reason == "length" for vine in vines),
    }
