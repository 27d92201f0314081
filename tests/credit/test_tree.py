"""Vines that are trained on: no bias under any outcome, and RLOO where there are none."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import nan
from typing import Any

import numpy as np
import pytest
from coin_walk import make_environment

from vineppo.credit.common import CreditContext
from vineppo.credit.least_squares import Products, of_others
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.tree import NUM_CONSTANTS, TreeConfig, TreeCredit
from vineppo.environment import Environment
from vineppo.exact.exhaustive import exact_bias
from vineppo.protocols import LearningEstimator
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.types import Assigned, Group, UserError

EXACT = 1e-12
SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)
SCHEDULES: dict[str, dict[str, Any]] = {
    "one vine": {"num_vines": 1},
    "two vines": {"num_vines": 2},
    "first segments": {"num_vines": 2, "train": "first"},
    "no prior": {"num_vines": 1, "baseline_prior": 0.0},
    "every token": {"num_vines": (1, 1), "states": {"kind": "stride", "stride": 1}},
    "a tree of every token": {"num_vines": (1, 1), "shape": "tree", "states": {"kind": "stride", "stride": 1}},
    "after rare tokens": {"num_vines": 1, "states": {"kind": "rare", "threshold": 0.5}},
}


def tree(environment: Environment, **config: Any) -> TreeCredit:
    return TreeCredit(TreeConfig(**config), CreditContext(environment))


def after_breaks(text: str) -> list[int]:
    return [i + 1 for i, letter in enumerate(text) if letter == "\n"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_bias_under_any_outcome(name):
    assert exact_bias(lambda environment: tree(environment, **SCHEDULES[name]), cut=after_breaks) < EXACT


def test_no_bias_whatever_constants_earlier_iterations_left():
    """The two-line world has one group, so all that is known is from before."""

    def with_evidence(environment: Environment) -> TreeCredit:
        credit = tree(environment, num_vines=1)
        rows = np.random.default_rng(0).normal(size=(9, 1 + NUM_CONSTANTS))
        credit.evidence = Products.of(rows.T, np.ones(9), 4)
        assert (abs(credit.evidence.fit()) > 0.05).all()
        return credit

    assert exact_bias(with_evidence, group_size=3, cut=after_breaks) < EXACT


class EqualWeights(TreeCredit):
    """Every edge counts the same, as in SPO-tree."""

    def assign(self, groups, *, seed):
        assigned = super().assign(groups, seed=seed)
        credits = [[replace(credit, weights=None) for credit in row] for row in assigned.credits]
        return Assigned(
            credits, {}, tuple(replace(one, credit=replace(one.credit, weights=None)) for one in assigned.extra)
        )


def test_equal_weights_of_all_edges_bias():
    """Three edges leave a state after a line: what the second line decides counts three times."""
    config = TreeConfig(num_vines=(2,), shape="tree", fit_baseline=False)
    assert exact_bias(lambda environment: EqualWeights(config, CreditContext(environment)), cut=after_breaks) > 0.5


def test_a_state_chosen_by_what_follows_it_biases():
    def before_breaks(text: str) -> list[int]:
        return [i for i, letter in enumerate(text) if letter == "\n"]

    assert exact_bias(lambda environment: tree(environment, num_vines=1), cut=before_breaks) > 0.05


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment()


@pytest.fixture(scope="module")
def groups(environment) -> list[Group]:
    return sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)


@pytest.mark.parametrize("num_vines", [0, (), (0,) * 5 + (3,)], ids=str)
def test_without_a_state_that_branches_it_is_rloo(environment, groups, num_vines):
    """The last has vines only where no response comes to."""
    short = [[replace(rollout, boundaries=(0, len(rollout.token_ids))) for rollout in group] for group in groups]
    ours = tree(environment, num_vines=num_vines, fit_baseline=False).assign(short, seed=3)
    theirs = RLOO(RLOOConfig()).assign(short, seed=3)
    assert not ours.extra
    for row, expected in zip(ours.credits, theirs.credits, strict=True):
        for credit, other in zip(row, expected, strict=True):
            assert credit.advantages == pytest.approx(other.advantages, abs=1e-12)
            assert credit.weights == (1.0,) * len(credit.advantages)


@pytest.mark.parametrize("config", [{"num_vines": 2}, {"num_vines": (1, 0, 2), "shape": "tree"}], ids=str)
def test_permuting_groups_and_siblings_permutes_credits(environment, groups, config):
    straight = tree(environment, **config, fit_baseline=False).assign(groups, seed=3).credits
    backwards = tree(environment, **config, fit_baseline=False).assign([g[::-1] for g in groups[::-1]], seed=3).credits
    for ones, others in zip(straight, [row[::-1] for row in backwards[::-1]], strict=True):
        for one, other in zip(ones, others, strict=True):
            assert one.advantages == pytest.approx(other.advantages, abs=1e-12)
            assert one.weights == pytest.approx(other.weights, abs=1e-12)


@pytest.mark.parametrize("config", [{"num_vines": 2}, {"num_vines": 2, "train": "first"}], ids=str)
def test_vines_are_whole_responses_whose_shared_tokens_are_no_actions(environment, groups, config):
    assigned = tree(environment, **config).assign(groups, seed=3)
    rollouts = [rollout for group in groups for rollout in group]
    assert assigned.metrics["credit/num_vines"] == len(assigned.extra) > 0
    for one in assigned.extra:
        root, vine, mask = rollouts[one.root], one.rollout, one.rollout.action_mask or ()
        start = mask.index(True)
        assert start in root.boundaries
        assert vine.token_ids[:start] == root.token_ids[:start]
        assert vine.completion.logprobs[:start] == root.completion.logprobs[:start]
        assert len(vine.token_ids) <= SAMPLING.max_new_tokens
        if vine.completion.finish_reason != "length":
            assert vine.reward == environment.task.grade(vine.problem, vine.text).reward
        prefixes = {r.token_ids[:b] for r in groups[one.root // 4] for b in r.boundaries[:-1]}  # states of rollouts
        for b, end in pairwise(one.credit.boundaries):
            trained = b >= start and (config.get("train") is None or vine.token_ids[:b] in prefixes)
            assert mask[b:end] == (trained,) * (end - b)


def test_siblings_that_come_by_a_state_are_among_its_continuations(environment):
    """Walks of two letters a segment often begin alike; 1 + K continuations leave a state, or all that came by."""
    groups = sample_groups(environment, environment.task.sample(6, seed=4), SAMPLING, seed=5)
    assigned = tree(environment, num_vines=(1,)).assign(groups, seed=3)
    shared = 0
    for p, group in enumerate(groups):
        passed = [rollout.token_ids[:2] for rollout in group if rollout.num_segments > 1]
        vines = [one.rollout.token_ids[:2] for one in assigned.extra if one.root // len(group) == p]
        shared += len(passed) - len(set(passed))
        assert sorted(vines) == sorted(prefix for prefix in set(passed) if passed.count(prefix) == 1)
    assert shared > 0


# Fitted baselines


def test_the_constants_of_a_group_are_those_of_least_squares_without_it():
    rng = np.random.default_rng(1)
    rows = [np.column_stack([rng.normal(size=(20, 3)), np.ones(20)]) for _ in range(3)]
    weights = [rng.uniform(0.1, 1, size=20) for _ in range(3)]
    pairs = zip(rows, weights, strict=True)
    evidence = [Products.of(row.T, w, 10**9) for row, w in pairs]  # so many rollouts that nothing is ridged
    for own, found in enumerate(of_others(evidence, Products.none(NUM_CONSTANTS))):
        others = [i for i in range(3) if i != own]
        root_weights = np.sqrt(np.concatenate([weights[i] for i in others]))[:, None]
        table = np.concatenate([rows[i] for i in others]) * root_weights
        expected = np.linalg.lstsq(table[:, 1:], table[:, 0], rcond=None)[0]
        assert found.fit() == pytest.approx(expected, abs=1e-6)


def test_a_group_s_own_returns_do_not_enter_its_constants(environment, groups):
    credit = tree(environment, num_vines=0)
    before = credit.assign(groups, seed=3).credits
    shift = [replace(rollout, reward=5 * rollout.reward + i) for i, rollout in enumerate(groups[0])]
    after = credit.assign([shift, *groups[1:]], seed=3).credits
    rloo = [RLOO(RLOOConfig()).assign([group], seed=0).credits[0] for group in (groups[0], shift)]
    assert before[1:] != after[1:]

    def taken_off(credits: Any, of_rloo: Any) -> list[float]:
        """By the constants, from the advantages of RLOO."""
        return [one.advantages[0] - other.advantages[0] for one, other in zip(credits, of_rloo, strict=True)]

    baselines = [
        [rollout.reward - other.advantages[0] for rollout, other in zip(group, of_rloo, strict=True)]
        for group, of_rloo in zip((groups[0], shift), rloo, strict=True)
    ]
    (slope, shifted), (again, shifted_again) = (
        np.polyfit(b, taken_off(row[0], r), 1) for b, row, r in zip(baselines, (before, after), rloo, strict=True)
    )
    assert (slope, shifted) == pytest.approx((again, shifted_again), abs=1e-9)


def test_what_was_learnt_is_saved(environment, groups, tmp_path):
    credit = tree(environment, num_vines=1)
    assert isinstance(credit, LearningEstimator)
    first = credit.assign(groups, seed=3)
    assert credit.assign(groups, seed=3) == first  # nothing was learnt from it yet
    credit.update([])
    credit.save(tmp_path)
    other = tree(environment, num_vines=1)
    other.load(tmp_path)
    assert other.assign(groups, seed=4) == credit.assign(groups, seed=4)
    assert other.assign(groups, seed=3) != first
    damaged = (
        {"products": "none"},
        {"products": [nan] * 16, "num_rollouts": 1},
        {"products": [1] * 16, "num_rollouts": 0},
    )
    for saved in damaged:
        (tmp_path / "baseline.json").write_text(json.dumps(saved))
        with pytest.raises(UserError, match=r"baseline\.json: not what tree has saved"):
            other.load(tmp_path)


def test_forks_need_alternatives(environment):
    with pytest.raises(UserError, match=r"set sampling\.num_alternatives"):
        tree(environment, states={"kind": "forks"})
