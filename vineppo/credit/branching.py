"""The policy gradient of a tree of responses: which advantage and which weight every token of it has.

A tree begins with the G rollouts of a prompt; from states of its responses more continuations are sampled. All n
continuations of a state are draws from the policy, those of the responses that came by it included, so each stands for
1/n of what follows. An edge is what a response wrote between two states. With u_e the sum of grad log pi over it, Q_e
the mean return of what follows it, and w_e the weight that arrives at its first state over n,

    g = sum_e w_e (Q_e - b_e) u_e,    b_e the mean Q of the other n - 1 edges that leave the same state,

has the policy gradient as its mean, by induction over depth: E[(1/n) sum_i f(child i) | s] = E[f(child) | s]. The
condition is that n, and where states are, depend on nothing that is drawn after the state. A tree of rollouts that
part at the prompt and nowhere else is RLOO's. Responses that meet in a state, siblings or vines, share what follows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from statistics import fmean
from typing import Literal

from vineppo.types import Rollout

Columns = list[list[float]]  # [N][L], a number for every token of every response of a tree

PROMPT = 0
"""The number of the first state."""


@dataclass(frozen=True)
class Branch:
    """A response of a tree. What it shares with the one that it continues is not its own."""

    rollout: Rollout
    boundaries: tuple[int, ...]  # [S+1] 0, its states, and its length; stopping times
    start: int = 0  # of its own tokens, one of the boundaries; 0 for a rollout
    root: int = 0  # the rollout that it descends from, by its number in the group

    @property
    def length(self) -> int:
        return len(self.rollout.token_ids)


@dataclass(frozen=True)
class Edge:
    """Tokens start .. end - 1 of a response, all its own, from a state to the next one or to its end."""

    branch: int
    start: int
    end: int
    state: int
    next_state: int | None


class Tree:
    """Of responses to one prompt. Its states are numbered, each after those before it."""

    def __init__(self, branches: Sequence[Branch]):
        self.branches = branches
        leaving: dict[int, list[Edge]] = {}
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}  # by the state before it and the tokens since
        for i, branch in enumerate(branches):
            state, ids = PROMPT, branch.rollout.token_ids
            for start, end in pairwise(branch.boundaries):
                after = None if end == branch.length else numbers.setdefault((state, ids[start:end]), len(numbers) + 1)
                if start >= branch.start:
                    leaving.setdefault(state, []).append(Edge(i, start, end, state, after))
                state = after if after is not None else PROMPT
        self.leaving = dict(sorted(leaving.items()))

    def spread(self, numbers: dict[Edge, float]) -> Columns:
        """Every token gets the number of its edge; those that are not a response's own get 0."""
        columns = [[0.0] * branch.length for branch in self.branches]
        for edge, number in numbers.items():
            columns[edge.branch][edge.start : edge.end] = [number] * (edge.end - edge.start)
        return columns


def tree_weights(tree: Tree, train: Literal["first", "all"] = "all") -> dict[Edge, float]:
    """w of every edge, in units of 1/G, what a rollout counts in RLOO.

    "all": a state hands on the weight that arrives at it. "first": it hands on what the rollouts that came by brought,
    so a vine counts in its first segment alone, but for states of rollouts that it meets. At every depth the weights of
    a group add up to the number of rollouts that are that long, on average.
    """
    arrived: Counter[int] = Counter()  # by state; counters of weights
    weights: dict[Edge, float] = {}
    for state, edges in tree.leaving.items():
        num_rollouts = sum(tree.branches[edge.branch].start == 0 for edge in edges)
        weight = arrived[state] if train == "all" and state != PROMPT else num_rollouts
        for edge in edges:
            weights[edge] = weight / len(edges)
            if edge.next_state is not None:
                arrived[edge.next_state] += weights[edge]  # pyright: ignore[reportArgumentType]
    return weights


def tree_returns(tree: Tree) -> dict[Edge, float]:
    """By edge: the mean return of what follows it."""
    returns: dict[Edge, float] = {}
    for edges in reversed(tree.leaving.values()):
        for edge in edges:
            if edge.next_state is None:
                returns[edge] = tree.branches[edge.branch].rollout.reward
            else:
                returns[edge] = fmean(returns[after] for after in tree.leaving[edge.next_state])
    return returns


@dataclass(frozen=True)
class Baselines:
    """By edge: its baseline, and the mean return of all that does not lead to its first state (its baseline, where
    there is nothing else)."""

    means: dict[Edge, float]
    elsewhere: dict[Edge, float]


def tree_baselines(tree: Tree, returns: Mapping[Edge, float], prior: float = 0.0) -> Baselines:
    """The mean over the other edges that leave the same state, with the mean elsewhere as `prior` more of them.

    What is carried on from state to state is the mean over all that does not lead there, so no response that an edge
    leads to, or that meets it again, is in its baseline. An edge that is alone has the carried mean, or 0.
    """
    carried: dict[int, float | None] = {PROMPT: None}
    found = Baselines({}, {})
    for state, edges in tree.leaving.items():
        before = carried[state]
        for edge in edges:
            others = [returns[other] for other in edges if other is not edge]
            mean = mean_with_prior(others, before, prior)
            found.means[edge] = 0.0 if mean is None else mean
            found.elsewhere[edge] = found.means[edge] if before is None else before
            if edge.next_state is not None and edge.next_state not in carried:
                elsewhere = [returns[other] for other in edges if other.next_state != edge.next_state]
                carried[edge.next_state] = mean_with_prior(elsewhere, before, prior)
    return found


def mean_with_prior(numbers: Sequence[float], before: float | None, count: float) -> float | None:
    """The mean of numbers among which `before` counts as `count` of them; `before` where there are none."""
    if not numbers or before is None:
        return fmean(numbers) if numbers else before
    return (fsum(numbers) + count * before) / (len(numbers) + count)


def tree_advantages(tree: Tree, returns: Mapping[Edge, float], means: Mapping[Edge, float]) -> Columns:
    """Q - b of every token, b the mean of its edge."""
    return tree.spread({edge: q - means[edge] for edge, q in returns.items()})


def state_values(tree: Tree, returns: Mapping[Edge, float]) -> Columns:  # [N][own states + 1]
    """V of every state that a response's own edges leave, the mean return of all edges that do; and its reward."""
    columns: Columns = [[] for _ in tree.branches]
    for edges in tree.leaving.values():
        value = fmean(returns[edge] for edge in edges)
        for edge in edges:
            columns[edge.branch].append(value)
    return [[*column, branch.rollout.reward] for column, branch in zip(columns, tree.branches, strict=True)]
