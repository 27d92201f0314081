"""Vines: what is sampled and when, what no credit may depend on, and, under every outcome, its exact bias."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from coin_walk import make_environment
from tiny import METHODS, START, recipe_of

from vineppo.credit.allocation import squared_scores
from vineppo.credit.common import CreditContext
from vineppo.credit.pooling import Node, by_depth, make_paths
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.smoothing import Gains, Sums, Trail, add_up, filtered_values
from vineppo.credit.states import StatesConfig, state_boundaries
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.credit.vines import Vines, VinesConfig, score_segments
from vineppo.exact.exhaustive import exact_bias
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.types import Group, UserError

SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)
KNOWN = (
    Sums(5.0, 16.0, 4.0, 0.3, 0.6, 0.5, 2.0, 0.9, 0.7, 0.5, 0.4),
    Sums(4.0, 9.0, 2.0, 0.4, 0.5, 0.1, 1.0, 0.3, 0.2, 0.6, 0.3),
    Sums(3.0, 4.0, 2.0, 0.2, 0.4, 0.1, 1.0, 0.3, 0.4, 0.6, 0.3),
)
"""Statistics as an earlier iteration might have left them."""
EXACT = 1e-12


@pytest.fixture(scope="module")
def environment():
    return make_environment()


@pytest.fixture(scope="module")
def groups(environment) -> list[Group]:
    return sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)


def make(environment, *, learnt: bool = True, **config) -> Vines:
    estimator = Vines(VinesConfig(**config), CreditContext(environment))
    if learnt:
        estimator.gains = replace(estimator.gains, positions=KNOWN, num_tokens=100.0)
    return estimator


def measure(estimator: Vines, groups: list[Group]) -> list[list[Node]]:
    rollouts = [rollout for group in groups for rollout in group]
    paths = make_paths(rollouts, [state_boundaries(rollout, estimator.config.states) for rollout in rollouts])
    for rollout, path in zip(rollouts, paths, strict=True):
        score_segments(path, squared_scores(rollout))
    estimator.measure(paths, seed=3)
    return paths


# What credit may not depend on


@pytest.mark.parametrize("config", [{"num_vines": 0}, {}, {"num_vines": 3, "skip_settled": 2, "allocation": "even"}])
def test_no_reward_changes_its_own_baseline_nor_what_is_sampled(environment, groups, config):
    """V^ of the states, as a rollout sees them, is the same if it earns something else; that of siblings is not."""
    estimator = make(environment, **config)
    changed = [[replace(group[0], reward=0.37), *group[1:]] for group in groups]
    before, after = (estimator.assign(of, seed=3) for of in (groups, changed))
    assert before.metrics["credit/num_vines"] == after.metrics["credit/num_vines"]
    for own, same in zip(before.credits, after.credits, strict=True):
        assert own[0].values
        assert same[0].values
        assert own[0].boundaries == same[0].boundaries
        assert own[0].values[:-1] == same[0].values[:-1]
        assert own[1].values != same[1].values


@pytest.mark.parametrize(
    "config", [{"num_vines": 0}, {"num_vines": 2}, {"allocation": "lacking"}, {"allocation": "even"}]
)
def test_permuting_rollouts_permutes_credits(environment, groups, config):
    estimator = make(environment, **config)
    straight = estimator.assign(groups, seed=3).credits
    backwards = estimator.assign([group[::-1] for group in groups[::-1]], seed=3).credits
    for credits, same in zip(straight, [of_group[::-1] for of_group in backwards[::-1]], strict=True):
        for one, other in zip(credits, same, strict=True):
            assert one.advantages == pytest.approx(other.advantages, abs=1e-12)


def test_statistics_are_used_after_the_iteration_that_left_them(environment, groups):
    estimator = make(environment, learnt=False)
    first = estimator.assign(groups, seed=3)
    assert estimator.assign(groups, seed=3) == first  # a stop may throw away what was assigned
    estimator.update(())
    assert estimator.assign(groups, seed=3).credits != first.credits


# What is sampled


def test_as_many_vines_as_other_responses_are_lacking(environment, groups):
    paths = measure(make(environment, num_vines=3, allocation="lacking"), groups)
    for node in {node for path in paths for node in path}:
        others = len(node.rollouts) - 1 + len(node.passing)
        assert len(node.vines) == max(0, 3 - others)


def test_every_state_has_its_vines_but_a_prompt_with_siblings(environment, groups):
    paths = measure(make(environment, num_vines=2, allocation="even"), groups)
    assert all(len(node.vines) == 2 * bool(node.above) for path in paths for node in path)
    alone = measure(make(environment, num_vines=2), [[groups[0][0]]])
    assert len(alone[0][0].vines) == 2


def test_the_vines_are_those_of_vineppo(environment, groups):
    """From the same states with the same seeds; the pool has more."""
    estimates = [
        credit.estimates
        for estimator in (
            make(environment, num_vines=2, allocation="even"),
            VinePPO(VinePPOConfig(num_vines=2), CreditContext(environment)),
        )
        for credits in estimator.assign(groups, seed=3).credits
        for credit in credits
    ]
    for pooled, plain in zip(estimates[: len(estimates) // 2], estimates[len(estimates) // 2 :], strict=True):
        assert pooled
        assert plain
        for mine, theirs in zip(pooled[1:], plain[1:], strict=True):
            assert (mine.rewards[:2], mine.texts) == (theirs.rewards, theirs.texts)


def test_vines_are_sampled_where_they_take_off_more_than_their_tokens_would(environment, groups):
    """By formulas written out for one state: the first vine of a response that is alone there."""
    estimator = make(environment, num_vines=1)
    gains = estimator.gains = replace(estimator.gains, num_tokens=10.0)
    paths = measure(estimator, groups)
    sampled = set()
    for path in paths:
        for above, node in pairwise(path):
            if len(node.rollouts) == 1 and not node.passing:
                variance, error = gains.noise(node.depth) or (0.0, 0.0)
                takes_off = node.weight * (error - 1 / (1 / error + 1 / variance))
                position, total = gains.at(node.depth), add_up(gains.positions)
                others = len(above.rollouts) - 1 + len(above.passing) + len(above.vines)
                gain = gains.after(above.depth, others)
                assert node.weight == pytest.approx(node.score + gain**2 * above.weight)
                worth = takes_off > total.square / 10.0 * position.tokens_left / position.count
                assert len(node.vines) == worth
                sampled.add(worth)
    assert sampled == {True, False}


def test_before_anything_is_known_vines_are_worth_nothing_but_to_a_response_alone(environment, groups):
    assert make(environment, learnt=False).assign(groups, seed=3).metrics["credit/num_vines"] == 0
    assert make(environment, learnt=False).assign([groups[0][:1]], seed=3).metrics["credit/num_vines"] == 2


def test_tokens_of_the_environment_have_no_score(environment, groups):
    rollout = max(groups[0], key=lambda rollout: rollout.num_segments)
    first = rollout.boundaries[1]
    masked = replace(rollout, action_mask=tuple(t >= first for t in range(len(rollout.token_ids))))
    for one, scored in ((rollout, True), (masked, False)):
        (path,) = make_paths([one], [one.boundaries])
        score_segments(path, squared_scores(one))
        assert (path[1].score > 0) == scored


@pytest.mark.parametrize("num", [2, 3])
def test_settled_states_are_skipped_and_checked_again(environment, groups, num):
    paths = measure(make(environment, num_vines=2, skip_settled=num, allocation="even"), groups)
    skipped = 0
    for path in paths:
        last = path[0]
        for node in path[1:]:
            rewards = [*last.vine_rewards, *last.passing]
            settled = len(rewards) >= 2 and min(rewards) == max(rewards)
            assert node.is_skipped == (settled and node.depth - last.depth < num)
            assert not (node.is_skipped and node.vines)
            skipped += node.is_skipped
            last = last if node.is_skipped else node
    assert skipped > 0


def test_layers_above_are_sampled_before_those_below(environment, groups):
    """One engine call where nothing depends on it, one for each layer that lacks something where it does."""
    calls = []
    finish = environment.engine.generate

    def counted(requests, *rest, **more):
        calls.append(len(requests))
        return finish(requests, *rest, **more)

    environment.engine.generate = counted
    try:
        measure(make(environment, num_vines=2, allocation="even"), groups)
        assert len(calls) == 1
        paths = measure(make(environment, num_vines=2, allocation="lacking"), groups)
    finally:
        environment.engine.generate = finish
    layers = [sum(len(node.vines) for node in layer) for layer in by_depth(paths)]
    assert calls[1:] == [num for num in layers if num]


# Known cases


def test_siblings_alone_with_one_state_are_rloo(environment, groups):
    estimator = make(environment, num_vines=0, gae_lambda=0.0, baseline="value", states={"first": 1})
    rloo = RLOO(RLOOConfig()).assign(groups, seed=0).credits
    for mine, theirs in zip(estimator.assign(groups, seed=3).credits, rloo, strict=True):
        for credit, same in zip(mine, theirs, strict=True):
            assert credit.advantages == pytest.approx(same.advantages)


def test_values_are_the_filtered_means_of_the_pools(environment, groups):
    for credits, group in zip(make(environment).assign(groups, seed=3).credits, groups, strict=True):
        for credit, rollout in zip(credits, group, strict=True):
            assert credit.values
            assert credit.estimates
            pools = [estimate.rewards for estimate in credit.estimates]
            trail = Trail(pools, pools, rollout.reward, [0.0] * len(pools), [1] * len(pools))
            assert credit.values == (*filtered_values(trail, Gains()), rollout.reward)
            assert credit.values[0] == fmean(pools[0])


def test_metrics_count_what_was_sampled(environment, groups):
    before = environment.engine.usage["vine"]
    metrics = make(environment, num_vines=2, allocation="lacking").assign(groups, seed=3).metrics
    assert environment.engine.usage["vine"] > before
    assert metrics["credit/num_vines"] + metrics["credit/num_vines_spared"] == 2 * metrics["credit/num_states_merged"]
    assert metrics["credit/num_states_skipped"] == 0
    for key in ("num_vines_spared", "siblings_mean", "passing_vines_mean"):
        assert metrics[f"credit/{key}"] > 0


def test_what_was_learnt_is_saved(environment, groups, tmp_path):
    estimator, other = make(environment, learnt=False), make(environment, learnt=False)
    estimator.assign(groups, seed=3)
    estimator.update(())
    estimator.save(tmp_path)
    other.load(tmp_path)
    assert other.assign(groups, seed=4).credits == estimator.assign(groups, seed=4).credits
    for saved in ('{"x": 1}', '{"positions": [[]], "num_tokens": 1}', '{"positions": [[1, 1e999]], "num_tokens": 1}'):
        (tmp_path / "vines.json").write_text(saved)
        with pytest.raises(UserError, match=r"vines.json: not what vines has saved"):
            other.load(tmp_path)


def test_mistakes(environment, groups):
    with pytest.raises(ValueError, match="give num_vines at least 2"):
        VinesConfig(num_vines=1, skip_settled=2)
    with pytest.raises(UserError, match="alone in its group without a baseline"):
        make(environment, num_vines=0).assign([groups[0][:1]], seed=0)
    alone = METHODS["rloo"]["sampling"] | {"group_size": 1, "max_resamples": 0}
    tree = METHODS["rloo"] | {"name": "x", "model": START, "sampling": alone}
    recipe_of(tree | {"credit": {"name": "vines"}})
    with pytest.raises(UserError, match="leaves vines nothing to compare"):
        recipe_of(tree | {"credit": {"name": "vines", "num_vines": 0}})


# Bias, under every outcome of a world of two lines


EVERY_TOKEN = StatesConfig(kind="stride", stride=1)


def after_breaks(text: str) -> list[int]:
    return [i + 1 for i, letter in enumerate(text) if letter == "\n"]


def bias(estimator: type[Vines] = Vines, *, group_size: int = 2, **config: Any) -> float:
    def make_estimator(environment) -> Vines:
        vines = estimator(VinesConfig.model_validate({"states": EVERY_TOKEN} | config), CreditContext(environment))
        vines.gains = replace(vines.gains, positions=KNOWN, num_tokens=100.0)
        return vines

    return exact_bias(make_estimator, group_size=group_size, cut=after_breaks)


@pytest.mark.parametrize(
    ("group_size", "config"),
    [
        (1, {}),
        (2, {"num_vines": 0}),
        (3, {"num_vines": 0}),
        (3, {"num_vines": 0, "baseline": "value"}),
        (2, {"num_vines": 0, "gae_lambda": 0.5}),
        (2, {"num_vines": 1}),
        (2, {"num_vines": 1, "states": StatesConfig()}),
        (2, {"num_vines": 1, "states": StatesConfig(kind="rare", threshold=0.65)}),
        (2, {"num_vines": 1, "allocation": "lacking"}),
        (2, {"num_vines": 1, "allocation": "even"}),
        (1, {"num_vines": 1, "allocation": "even", "gae_lambda": 0.0, "baseline": "value"}),
        (1, {"num_vines": 1, "allocation": "lacking", "gae_lambda": 0.5, "baseline": "value"}),
        (1, {"num_vines": 2, "allocation": "even", "skip_settled": 2}),
    ],
    ids=str,
)
def test_the_expected_gradient_is_the_true_one(group_size, config):
    assert bias(group_size=group_size, **config) < EXACT


class OwnRewardInBaseline(Vines):
    def trail(self, rollout, nodes, scores):
        trail = super().trail(rollout, nodes, scores)
        return replace(trail, pools=[[*pool, rollout.reward] for pool in trail.pools])


class EndsWithRewardsThatDecided(Vines):
    def trail(self, rollout, nodes, scores):
        trail = super().trail(rollout, nodes, scores)
        return replace(trail, end_pools=trail.pools)


class MoreVinesUnlessTheFirstTwoAgree(Vines):
    """Decided by what the state's own vines earned."""

    def sample(self, lacking, *, seed):
        super().sample(dict.fromkeys(lacking, 2), seed=seed)
        split = {node: 1 for node in lacking if len(set(node.vine_rewards)) > 1}
        super().sample(split, seed=seed + 1)


class GainByWhatFollows(Vines):
    """V^_j mixed with V^_{j+1} by the size of the later pool: siblings run through where they are likely to be good."""

    def trail(self, rollout, nodes, scores):
        trail = super().trail(rollout, nodes, scores)
        pools = [*trail.end_pools, [rollout.reward]]
        mixed = [[*mine, *later] if mine else mine for mine, later in pairwise(pools)]
        return replace(trail, end_pools=mixed)


@pytest.mark.parametrize(
    ("estimator", "group_size", "config"),
    [
        (OwnRewardInBaseline, 2, {"num_vines": 0, "baseline": "value"}),
        (EndsWithRewardsThatDecided, 1, {"num_vines": 2, "allocation": "even", "skip_settled": 3}),
        (
            MoreVinesUnlessTheFirstTwoAgree,
            1,
            {"num_vines": 1, "allocation": "even", "gae_lambda": 0.0, "states": StatesConfig()},
        ),
        (GainByWhatFollows, 2, {"num_vines": 0}),
    ],
)
def test_what_is_not_done_and_why(estimator, group_size, config):
    assert bias(estimator, group_size=group_size, **config) > 1e-3
