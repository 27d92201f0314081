"""Tree: vines that are trained on, as many as the recipe plants at each state, in one response or in a whole tree.

TRPO's vine (Schulman et al. 2015, section 5.2) takes actions from states of a first trajectory and learns from them;
VinePPO measures with such vines and learns from none. Here every sampled token may be learnt from. Formulas, and why
they are unbiased: branching.py.

The mean return b of the other edges that leave a state leaves the gradient's mean alone, and so does any multiple of
it. The best baseline of a state is sum_a w_a Q(s, a) / sum_a w_a with w_a = pi(a) |grad log pi(a)|^2, far below V(s)
where the policy is sure and its rare mistakes cost everything. It needs Q of tokens that were not drawn; the best
linear guess from what is known before the edge is drawn is the weighted least-squares fit (least_squares.py) of

    minimise sum_e (w_e |u_e|)^2 (Q_e - b_e - k_1 b_e - k_2 (c_e - b_e) - k_3)^2,    |u_e|^2 the sum of squared scores,

with c_e the mean return elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from vineppo.credit.allocation import squared_scores
from vineppo.credit.branching import (
    Baselines,
    Branch,
    Edge,
    Tree,
    state_values,
    tree_advantages,
    tree_baselines,
    tree_returns,
    tree_weights,
)
from vineppo.credit.common import CreditContext, credit_metrics
from vineppo.credit.config import TreeConfig
from vineppo.credit.growing import grow
from vineppo.credit.least_squares import Products, of_others
from vineppo.credit.states import check_states, state_boundaries
from vineppo.machine.files import read_json, write_json
from vineppo.machine.saved_state import restoring
from vineppo.types import Assigned, Credit, ExtraRollout, Group, Rollout

STATE_FILE = "baseline.json"
NUM_CONSTANTS = 3
NO_FIT = np.zeros(NUM_CONSTANTS)


@dataclass(frozen=True)
class Judged:
    """A group's tree with what its gradient is made of."""

    tree: Tree
    weights: dict[Edge, float]
    returns: dict[Edge, float]
    baselines: Baselines

    @cached_property
    def evidence(self) -> Products:
        """Of Q - b, b, c - b and 1 for every edge, weighted by its squared length in the gradient."""
        means, elsewhere = self.baselines.means, self.baselines.elsewhere
        columns = [(self.returns[e] - b, b, elsewhere[e] - b, 1.0) for e, b in means.items()]
        scores = [squared_scores(branch.rollout) for branch in self.tree.branches]
        squares = [self.weights[e] ** 2 * math.fsum(scores[e.branch][e.start : e.end]) for e in means]
        num_rollouts = sum(branch.start == 0 for branch in self.tree.branches)
        return Products.of(np.array(columns).T, np.array(squares), num_rollouts)

    def credits(self, constants: np.ndarray) -> list[Credit]:  # [N]
        stretch, mix, shift = map(float, constants)
        elsewhere = self.baselines.elsewhere
        means = {e: b + stretch * b + mix * (elsewhere[e] - b) + shift for e, b in self.baselines.means.items()}
        columns = tree_advantages(self.tree, self.returns, means), self.tree.spread(self.weights)
        values = state_values(self.tree, self.returns)
        return [
            Credit(branch.boundaries, tuple(a), tuple(v) if branch.start == 0 else None, weights=tuple(w))
            for branch, a, w, v in zip(self.tree.branches, *columns, values, strict=True)
        ]


class TreeCredit:
    Config = TreeConfig

    def __init__(self, config: TreeConfig, context: CreditContext):
        check_states(config.states, context.environment.params)
        self.config = config
        self.environment = context.environment
        self.evidence = Products.none(NUM_CONSTANTS)  # of iterations that were learnt from
        self._pending: Products | None = None

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        trees = grow(self.environment, groups, self.plan, depth=self.config.depth, seed=seed)
        judged = [self.judge(branches) for branches in trees]
        fits = self.fit([one.evidence for one in judged]) if self.config.fit_baseline else [NO_FIT] * len(judged)
        credited = [one.credits(constants) for one, constants in zip(judged, fits, strict=True)]
        credits = [of_tree[: len(group)] for group, of_tree in zip(groups, credited, strict=True)]
        firsts = accumulate(map(len, groups), initial=0)
        extra = tuple(
            make_extra(branch, credit, root=first + branch.root)
            for first, branches, of_tree in zip(firsts, trees, credited, strict=False)
            for branch, credit in zip(branches, of_tree, strict=True)
            if branch.start > 0
        )
        return Assigned(credits, tree_metrics(trees, credited), extra)

    def judge(self, branches: Sequence[Branch]) -> Judged:
        tree = Tree(branches)
        returns = tree_returns(tree)
        baselines = tree_baselines(tree, returns, self.config.baseline_prior)
        return Judged(tree, tree_weights(tree, self.config.train), returns, baselines)

    def fit(self, evidence: Sequence[Products]) -> list[np.ndarray]:  # [P][C-1]
        """For each group by what all others show, in this iteration and before."""
        before = self.evidence.decayed()
        self._pending = sum(evidence, before)
        return [others.fit() for others in of_others(evidence, before)]

    def update(self, minibatch: object) -> dict[str, float]:
        """Once an iteration is learnt from, what it showed is of an earlier one."""
        if self._pending is not None:
            self.evidence, self._pending = self._pending, None
        return {}

    def memory(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        write_json(folder / STATE_FILE, self.evidence.as_json())

    def load(self, folder: Path) -> None:
        saved = read_json(path := folder / STATE_FILE)
        with restoring(path, f"what {self.config.name} has saved"):
            self.evidence = self.evidence.like(saved)

    def plan(self, rollout: Rollout) -> dict[int, int]:
        """K of every state that has vines, by its position."""
        states = enumerate(state_boundaries(rollout, self.config.states)[1:-1], start=1)
        return {position: k for number, position in states if (k := self.config.vines_at(number))}


def make_extra(branch: Branch, credit: Credit, root: int) -> ExtraRollout:
    """Tokens that are not its own, the environment's, or count nothing, are no actions."""
    assert credit.weights is not None
    own = zip(branch.rollout.is_action, credit.weights, strict=True)
    mask = tuple(t >= branch.start and is_action and weight > 0 for t, (is_action, weight) in enumerate(own))
    return ExtraRollout(replace(branch.rollout, action_mask=mask), credit, root=root)


def tree_metrics(trees: Sequence[Sequence[Branch]], credited: Sequence[Sequence[Credit]]) -> dict[str, float]:
    pairs = [pair for row in zip(trees, credited, strict=True) for pair in zip(*row, strict=True)]
    vines = [branch.rollout for branch, _ in pairs if branch.start > 0]
    advantages = [credit.advantages[b] for branch, credit in pairs for b in branch.boundaries[:-1] if b >= branch.start]
    return {
        **credit_metrics(credited, advantages),
        "credit/num_states": sum(len(branch.boundaries) - 1 for branch, _ in pairs if branch.start == 0),
        "credit/num_vines": len(vines),
        "credit/num_vines_truncated": sum(vine.completion.finish_reason == "length" for vine in vines),
    }
