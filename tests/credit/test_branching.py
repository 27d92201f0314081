"""The tree policy gradient against a recursion over nested lists, and what must not matter to it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytest

from vineppo.credit.advantages import leave_one_out
from vineppo.credit.branching import (
    Branch,
    Columns,
    Tree,
    tree_advantages,
    tree_baselines,
    tree_returns,
    tree_weights,
)
from vineppo.types import Completion, Problem, Rollout

Ids = tuple[int, ...]


@dataclass
class Node:
    """What one draw wrote after a state: tokens, and then a reward or what was drawn next. Tokens occur only once."""

    tokens: list[int]
    reward: float = 0.0
    children: list[Node] = field(default_factory=list)

    def leaves(
        self, before: tuple[int, ...] = (), weight: float = 1.0
    ) -> Iterator[tuple[tuple[int, ...], float, float]]:
        """(all tokens, reward, product of 1/n below this node) of every response through it."""
        ids = (*before, *self.tokens)
        if not self.children:
            yield ids, self.reward, weight
        for child in self.children:
            yield from child.leaves(ids, weight / len(self.children))


def grow(rng: random.Random, depth: int, counter: list[int]) -> Node:
    tokens = [counter.pop() for _ in range(rng.randint(1, 3))]
    if depth == 0:
        return Node(tokens, reward=rng.random())
    return Node(tokens, children=[grow(rng, depth - 1, counter) for _ in range(rng.randint(1, 3))])


def grow_group(seed: int, depth: int = 3) -> list[Node]:
    rng, counter = random.Random(seed), list(range(100_000, 0, -1))
    return [grow(rng, rng.randint(0, depth), counter) for _ in range(rng.randint(2, 4))]


def make_rollout(ids: tuple[int, ...], reward: float) -> Rollout:
    completion = Completion(ids, (0.0,) * len(ids), "eos", 0)
    return Rollout(Problem("p", "x", "a"), (0,), completion, "", reward, "correct", (0, len(ids)), 99)


def branches_of(group: list[Node]) -> list[Branch]:
    """The first child goes on with its parent's response, the others are vines."""
    found: list[Branch] = []

    def visit(node: Node, before: tuple[int, ...], boundaries: tuple[int, ...], start: int) -> None:
        ids = (*before, *node.tokens)
        boundaries = (*boundaries, len(ids))
        if not node.children:
            found.append(Branch(make_rollout(ids, node.reward), boundaries, start))
        for i, child in enumerate(node.children):
            visit(child, ids, boundaries, len(ids) if i else start)

    for root in group:
        visit(root, (), (0,), 0)
    return found


def by_token(tree: Tree, columns: list[list[float]]) -> dict[int, float]:
    """What each token has where it is a response's own; that of every response is there once."""
    found = {}
    for branch, column in zip(tree.branches, columns, strict=True):
        for t, token in enumerate(branch.rollout.token_ids):
            if t >= branch.start:
                assert token not in found
                found[token] = column[t]
            else:
                assert column[t] == 0
    return found


def by_hand(group: list[Node]) -> tuple[dict[int, float], dict[int, float]]:
    """Advantages and weights by recursion from every state's children."""
    advantages: dict[int, float] = {}
    weights: dict[int, float] = {}

    def mean_return(node: Node) -> float:
        return fmean(mean_return(child) for child in node.children) if node.children else node.reward

    def visit(siblings: list[Node], weight: float, above: list[Node]) -> None:
        """`above` are the latest siblings there were to be compared with, where there are none here."""
        for node in siblings:
            others = [other for other in siblings if other is not node] or above
            for token in node.tokens:
                advantages[token] = mean_return(node) - fmean(map(mean_return, others))
                weights[token] = weight / len(siblings)
            visit(node.children, weight / len(siblings), others)

    visit(group, len(group), [])
    return advantages, weights


def advantages_of(tree: Tree, prior: float = 0.0) -> Columns:
    returns = tree_returns(tree)
    return tree_advantages(tree, returns, tree_baselines(tree, returns, prior).means)


def weights_of(tree: Tree, train: Any = "all") -> Columns:
    return tree.spread(tree_weights(tree, train))


SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_and_weights_are_those_of_the_recursion(seed):
    group = grow_group(seed)
    tree = Tree(branches_of(group))
    advantages, weights = by_hand(group)
    assert by_token(tree, advantages_of(tree)) == pytest.approx(advantages, abs=1e-12)
    assert by_token(tree, weights_of(tree)) == pytest.approx(weights, abs=1e-12)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_rollouts_that_part_at_the_prompt_alone_have_rloo_s_advantages(prior):
    rng = random.Random(3)
    rewards = [rng.random() for _ in range(6)]
    tree = Tree([Branch(make_rollout(tuple(range(10 * g, 10 * g + 5)), r), (0, 2, 5)) for g, r in enumerate(rewards)])
    expected = [[advantage] * 5 for advantage in leave_one_out(rewards)]
    assert advantages_of(tree, prior=prior) == [pytest.approx(row, abs=1e-12) for row in expected]
    assert weights_of(tree) == weights_of(tree, "first") == [[1.0] * 5] * 6


@pytest.mark.parametrize("seed", SEEDS)
def test_which_draw_was_there_first_does_not_matter(seed):
    """Chain and vine change places, so that other tokens are the chain's."""
    group = grow_group(seed)
    straight = Tree(branches_of(group))

    def turn(node: Node) -> Node:
        return Node(node.tokens, node.reward, [turn(child) for child in node.children[::-1]])

    turned = Tree(branches_of([turn(node) for node in group]))
    for find in (weights_of, advantages_of):
        assert by_token(turned, find(turned)) == pytest.approx(by_token(straight, find(straight)), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("prior", [0.0, 0.5, 2.0])
def test_no_baseline_knows_what_follows_its_edge(seed, prior):
    group = grow_group(seed)
    tree = Tree(branches_of(group))
    before = tree_baselines(tree, tree_returns(tree), prior)
    for i, branch in enumerate(tree.branches):
        changed = [*tree.branches]
        changed[i] = Branch(make_rollout(branch.rollout.token_ids, 7.0), branch.boundaries, branch.start)
        other = Tree(changed)
        after = tree_baselines(other, tree_returns(other), prior)
        for edge in before.means:
            written = tree.branches[edge.branch].rollout.token_ids[: edge.end]
            if branch.rollout.token_ids[: edge.end] == written:
                assert after.means[edge] == before.means[edge]
                assert after.elsewhere[edge] == before.elsewhere[edge]


@pytest.mark.parametrize("train", ["all", "first"])
def test_at_every_depth_the_weights_of_a_group_add_up_to_its_number(train):
    """G = 3 rollouts, 2 more draws at two states of each; all responses are 6 tokens long."""
    counter = iter(range(1000))

    def write(n: int) -> list[int]:
        return [next(counter) for _ in range(n)]

    def bush() -> Node:
        chain = Node(write(2), children=[Node(write(2)) for _ in range(3)])
        return Node(write(2), children=[chain, *(Node(write(2), children=[Node(write(2))]) for _ in range(2))])

    group = [bush() for _ in range(3)]
    for root in group:
        for node in root.children[0].children:
            node.children = []
    tree = Tree(branches_of(group))
    columns = weights_of(tree, train)
    assert {branch.length for branch in tree.branches} == {6}
    for t in range(6):
        assert sum(column[t] for column in columns) == pytest.approx(3)
    if train == "first":  # of the chain and two vines each; a vine's second segment counts nothing
        assert sorted(column[5] for column in columns) == pytest.approx([0.0] * 6 + [1 / 3] * 9)


def test_responses_that_meet_share_what_follows_and_the_weight_that_arrives():
    """Two rollouts write 1 2, and one has a vine there; a third rollout writes something else."""
    common = ((1, 2, 3), 1.0), ((1, 2, 4), 0.0)
    branches = [
        *(Branch(make_rollout(ids, reward), (0, 2, 3)) for ids, reward in common),
        Branch(make_rollout((5, 6, 7), 0.0), (0, 2, 3)),
        Branch(make_rollout((1, 2, 8), 1.0), (0, 2, 3), start=2),
    ]
    tree = Tree(branches)
    assert weights_of(tree) == [[1.0, 1.0, pytest.approx(2 / 3)]] * 2 + [[1.0] * 3, [0.0, 0.0, pytest.approx(2 / 3)]]
    assert weights_of(tree) == weights_of(tree, "first")
    value = 2 / 3
    expected = [
        [value - (value + 0) / 2] * 2 + [1 - 1 / 2],
        [value - (value + 0) / 2] * 2 + [0 - 1],
        [0 - value] * 3,
        [0, 0, 1 - 1 / 2],
    ]
    assert advantages_of(tree) == [pytest.approx(row) for row in expected]
    carried = 0.0  # the third rollout alone did not come by
    with_prior = (0 + 1 + carried) / 3
    assert advantages_of(tree, prior=1.0)[0][2] == pytest.approx(1 - with_prior)
