import gzip
import json
import math
from statistics import fmean, variance

import pytest
from coin_walk import CoinWalk, exact_value, height, make_environment

from vineppo.credit.common import CreditContext
from vineppo.credit.states import state_at, state_key
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.environment import State
from vineppo.rollout_files import save_rollouts
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.types import Group, Rollout

SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)


@pytest.fixture(scope="module", params=[False, True], ids=["binary", "partial"])
def environment(request):
    return make_environment(CoinWalk(partial=request.param))


@pytest.fixture(scope="module")
def groups(environment) -> list[Group]:
    return sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)


def states_of(groups: list[Group]) -> list[tuple[Rollout, int]]:
    return [(rollout, boundary) for group in groups for rollout in group for boundary in rollout.boundaries[:-1]]


def test_advantages_of_every_rollout_sum_to_reward_minus_initial_value(environment, groups):
    credits = VinePPO(VinePPOConfig(), CreditContext(environment)).assign(groups, seed=3).credits
    for group, group_credits in zip(groups, credits, strict=True):
        for rollout, credit in zip(group, group_credits, strict=True):
            per_segment = [credit.advantages[start] for start in credit.boundaries[:-1]]
            assert credit.values is not None
            assert math.fsum(per_segment) == pytest.approx(rollout.reward - credit.values[0], abs=1e-12)
            assert credit.values[-1] == rollout.reward
            assert credit.boundaries == rollout.boundaries


@pytest.mark.parametrize("written", ["", "u", "dd", "udduuu"])
def test_estimates_are_unbiased_and_vary_as_p_1_minus_p_over_k(environment, written):
    """1,300 independent estimates of 9 vines (11,700 vines) of one state against its exact value."""
    num_estimates, num_vines, budget = 1300, 9, 8
    tokens = tuple(environment.tokenizer.encode(written))
    prompt = tuple(environment.tokenizer.encode("x"))
    states = {
        (problem.id, prompt + tokens): (State(problem, prompt, tokens), budget)
        for problem in environment.task.sample(num_estimates, seed=7)
    }
    estimates = VinePPO(VinePPOConfig(num_vines=num_vines), CreditContext(environment)).estimate(states, seed=8)
    means = [estimate.mean for estimate in estimates.values()]
    partial = environment.task.partial
    value = exact_value(height(written), budget, partial)
    assert fmean(means) == pytest.approx(value, abs=3 * math.sqrt(variance(means) / num_estimates))
    if not partial:
        expected = value * (1 - value) / num_vines
        # a sample variance over n draws has relative standard error sqrt(2 / n) near the normal law
        assert variance(means) == pytest.approx(expected, rel=4 * math.sqrt(2 / num_estimates))


def test_permuting_rollouts_permutes_credits(environment, groups):
    estimator = VinePPO(VinePPOConfig(num_vines=3), CreditContext(environment))
    straight = estimator.assign(groups, seed=3).credits
    backwards = estimator.assign([group[::-1] for group in groups[::-1]], seed=3).credits
    assert [credits[::-1] for credits in backwards[::-1]] == straight


def test_an_estimate_does_not_depend_on_what_else_is_estimated(environment, groups):
    estimator = VinePPO(VinePPOConfig(num_vines=3), CreditContext(environment))
    together = estimator.assign(groups, seed=3).credits
    alone = [estimator.assign([group], seed=3).credits[0] for group in groups]
    assert alone == together


def test_identical_states_of_one_problem_are_estimated_once(environment, groups):
    estimator = VinePPO(VinePPOConfig(num_vines=2), CreditContext(environment))
    metrics = estimator.assign(groups, seed=3).metrics
    distinct = {state_key(state_at(rollout, boundary)) for rollout, boundary in states_of(groups)}
    assert metrics["credit/num_states"] == len(states_of(groups))
    assert metrics["credit/num_states_merged"] == len(distinct) < len(states_of(groups))
    assert metrics["credit/num_vines"] == 2 * len(distinct)


@pytest.mark.parametrize(("vine_budget", "tokens"), [("remaining", 12), ("full", 24)])
def test_a_vine_may_write_what_the_rollout_had_left_or_the_full_budget(environment, groups, vine_budget, tokens):
    estimator = VinePPO(VinePPOConfig(vine_budget=vine_budget), CreditContext(environment))
    rollout = max((rollout for group in groups for rollout in group), key=lambda rollout: rollout.num_segments)
    boundary = rollout.boundaries[-2]
    assert boundary + estimator.budget(rollout, boundary) == (tokens if vine_budget == "remaining" else boundary + 12)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_states_merges_segments_and_keeps_the_law(environment, groups, limit):
    credits = (
        VinePPO(VinePPOConfig(num_vines=2, max_states_per_rollout=limit), CreditContext(environment))
        .assign(groups, seed=3)
        .credits
    )
    for group, group_credits in zip(groups, credits, strict=True):
        for rollout, credit in zip(group, group_credits, strict=True):
            assert len(credit.boundaries) - 1 == min(limit, rollout.num_segments)
            assert set(credit.boundaries) <= set(rollout.boundaries)
            assert len(credit.advantages) == len(rollout.token_ids)


def test_vines_are_counted_and_truncated_ones_earn_nothing(environment):
    groups = sample_groups(environment, environment.task.sample(2, seed=1), SAMPLING, seed=2)
    before = environment.engine.usage["vine"]
    estimator = VinePPO(VinePPOConfig(num_vines=4), CreditContext(environment))
    metrics = estimator.assign(groups, seed=5).metrics
    assert (
        environment.engine.usage["vine"] - before >= metrics["credit/num_vines"] - metrics["credit/num_vines_truncated"]
    )
    assert 0 < metrics["credit/num_vines_truncated"] < metrics["credit/num_vines"]


def test_the_rollouts_file_holds_the_vines_that_values_are_the_means_of(environment, groups, tmp_path):
    credits = VinePPO(VinePPOConfig(num_vines=3), CreditContext(environment)).assign(groups, seed=3).credits
    save_rollouts(tmp_path / "all.jsonl.gz", groups, credits, environment, num_vines=9)
    save_rollouts(tmp_path / "two.jsonl.gz", groups, credits, environment, num_vines=2)
    everything, two = (
        [json.loads(line) for line in gzip.decompress((tmp_path / name).read_bytes()).splitlines()]
        for name in ("all.jsonl.gz", "two.jsonl.gz")
    )
    task = environment.task
    problems = {rollout.problem.id: rollout.problem for group in groups for rollout in group}
    for line, short in zip(everything, two, strict=True):
        written = ""
        for segment, vines, value in zip(line["segments"], line["vines"], line["values"], strict=False):
            assert fmean(vine["reward"] for vine in vines) == pytest.approx(value)
            for vine in vines:
                response = written + vine["text"]
                if len(response) < SAMPLING.max_new_tokens:  # else the budget may have cut it off
                    assert task.grade(problems[line["problem"]], response).reward == vine["reward"]
            written += segment
        assert len(line["vines"]) == len(line["segments"])
        assert short["vines"] == [vines[:2] for vines in line["vines"]]
