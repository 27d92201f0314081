"""Tree: vines that are trained on, as many as the recipe plants at each state, in one response or in a whole tree.

TRPO's vine (Schulman et al. 2015, section 5.2) takes actions from states of a first trajectory and learns from them;
VinePPO measures with such vines and learns from none. Here every sampled token may be learnt from. Formulas, and why
they are unbiased: branching.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from vineppo.credit.branching import (
    Baselines,
    Branch,
    Edge,
    Returns,
    Tree,
    state_values,
    tree_advantages,
    tree_baselines,
    tree_returns,
    tree_weights,
)
from vineppo.credit.common import CreditContext, advantage_metrics, value_metrics
from vineppo.credit.config import TreeConfig
from vineppo.credit.fitted_baseline import NUM_CONSTANTS, Evidence, of_others, squared_score
from vineppo.credit.growing import grow
from vineppo.credit.states import check_states, state_boundaries
from vineppo.machine.files import read_json, write_json
from vineppo.types import Assigned, Credit, ExtraRollout, Group, Rollout, UserError

STATE_FILE = "baseline.json"
NO_FIT = np.zeros(NUM_CONSTANTS)


@dataclass(frozen=True)
class Judged:
    """A group's tree with what its gradient is made of."""

    tree: Tree
    weights: dict[Edge, float]
    returns: Returns
    baselines: Baselines

    @cached_property
    def evidence(self) -> Evidence:
        means, elsewhere = self.baselines.means, self.baselines.elsewhere
        columns = [(self.returns.first[e] - b, b, elsewhere[e] - b, 1.0) for e, b in means.items()]
        rollouts = [branch.rollout for branch in self.tree.branches]
        scores = [self.weights[e] ** 2 * squared_score(rollouts[e.branch], e.start, e.end) for e in means]
        num_rollouts = sum(branch.start == 0 for branch in self.tree.branches)
        return Evidence.of(np.array(columns), np.array(scores), num_rollouts)

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
        self.evidence = Evidence.none()  # of iterations that were learnt from
        self._pending: Evidence | None = None

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

    def fit(self, evidence: Sequence[Evidence]) -> list[np.ndarray]:  # [P][C-1]
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
        saved = {"products": self.evidence.products_CC.tolist(), "num_rollouts": self.evidence.num_rollouts}
        write_json(folder / STATE_FILE, saved)

    def load(self, folder: Path) -> None:
        saved = read_json(path := folder / STATE_FILE)
        try:
            self.evidence = Evidence(np.array(saved["products"], dtype=np.float64), float(saved["num_rollouts"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not what {self.config.name} has saved ({error}); remove the checkpoint") from None

    def plan(self, rollout: Rollout) -> dict[int, int]:
        """K of every state that has vines, by its position."""
        states = enumerate(state_boundaries(rollout, self.config.states)[1:-1], start=1)
        return {position: k for number, position in states if (k := self.config.vines_at(number))}


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
