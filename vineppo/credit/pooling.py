"""States as trees: which responses run through a state, so that their rewards are measurements of its value.

A response that begins with a state's tokens was sampled from that state on, so its reward has mean V(s) given s. That
holds for the rollouts that run through s and for the vines of states above it, and it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vineppo.credit.states import state_at, state_key
from vineppo.environment import GradedCompletion, State
from vineppo.types import Rollout


@dataclass(eq=False)
class Node:
    """A state, what runs through it, and the nearest states below it."""

    state: State
    budget: int  # new tokens that a vine may take: what a rollout has left there
    above: Node | None = None
    depth: int = 0  # states above it
    below: list[Node] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    vines: list[GradedCompletion] = field(default_factory=list)
    passing: list[float] = field(default_factory=list)  # rewards of vines of states above that run through it
    is_skipped: bool = False
    score: float = 0.0  # squared length of grad log pi over the segment that leads to it
    weight: float = 0.0  # what an error of its value counts in the gradient (worth.py)

    @property
    def vine_rewards(self) -> list[float]:
        return [vine.grade.reward for vine in self.vines]

    def sibling_rewards(self, rollout: Rollout) -> list[float]:
        """Of the other rollouts that run through it."""
        return [other.reward for other in self.rollouts if other is not rollout]

    def rewards(self, rollout: Rollout) -> list[float]:
        """Of all that runs through it but this rollout: none of them knows what the rollout wrote next."""
        return [*self.vine_rewards, *self.passing, *self.sibling_rewards(rollout)]

    def along(self, ids: tuple[int, ...]) -> Iterator[Node]:
        """The states below it that a response runs through, which runs through this one; `ids` with the prompt."""
        node: Node | None = self
        while node := next((below for below in node.below if below.is_passed(ids)), None):
            yield node

    def is_passed(self, ids: tuple[int, ...]) -> bool:
        """By a response that runs through the state above."""
        assert self.above is not None
        start, own = len(self.above.state.prefix_ids), self.state.prefix_ids
        return ids[start : len(own)] == own[start:]

    def add_below(self, node: Node) -> None:
        node.above, node.depth = self, self.depth + 1
        self.below.append(node)

    def add_vines(self, vines: Sequence[GradedCompletion]) -> None:
        """Every state below that one of them runs through gets its reward too."""
        self.vines += vines
        for vine in vines:
            for node in self.along(self.state.prefix_ids + vine.completion.token_ids):
                node.passing.append(vine.grade.reward)


def make_paths(rollouts: Sequence[Rollout], boundaries: Sequence[Sequence[int]]) -> list[list[Node]]:  # [N][S]
    """The states of every rollout, at its `boundaries` [S+1] but the last.

    Where problem, token ids and the tokens left are the same, rollouts share a node.
    """
    nodes: dict[object, Node] = {}
    paths = [
        [find_node(nodes, rollout, boundary) for boundary in cuts[:-1]]
        for rollout, cuts in zip(rollouts, boundaries, strict=True)
    ]
    roots = {node: path[0] for path in paths for node in path}
    for node in sorted(roots, key=lambda node: len(node.state.response_ids)):
        if node is not roots[node]:
            *_, above = roots[node], *roots[node].along(node.state.prefix_ids)
            above.add_below(node)
    for rollout, path in zip(rollouts, paths, strict=True):
        for node in (path[0], *path[0].along(rollout.prompt_ids + rollout.token_ids)):
            node.rollouts.append(rollout)
    return paths


def find_node(nodes: dict[object, Node], rollout: Rollout, boundary: int) -> Node:
    """Made where it is not among them yet."""
    state = state_at(rollout, boundary)
    key = state_key(state), rollout.max_new_tokens
    if key not in nodes:
        nodes[key] = Node(state, rollout.budget_at(boundary))
    return nodes[key]


def unique(paths: Sequence[Sequence[Node]]) -> list[Node]:
    return list(dict.fromkeys(node for path in paths for node in path))


def by_depth(paths: Sequence[Sequence[Node]]) -> list[list[Node]]:
    """All nodes once, in layers: a node's layer is the number of states above it."""
    layers: dict[int, list[Node]] = {}
    for node in unique(paths):
        layers.setdefault(node.depth, []).append(node)
    return [layers[depth] for depth in sorted(layers)]
