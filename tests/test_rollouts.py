"""Sampling an iteration: prompts that teach nothing are replaced, counted, and by the same draws every time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from coin_walk import CoinWalk, make_environment

from vineppo.environment import Environment
from vineppo.rollouts import Sampled, SamplingConfig, rollout_metrics, sample_groups, sample_iteration
from vineppo.seeding import derive_seed
from vineppo.types import Grade, Group, Problem, UserError, equal_rewards

SEED = partial(derive_seed, 3, 0)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment(CoinWalk())


def config(max_resamples: int) -> SamplingConfig:
    return SamplingConfig(prompts_per_iteration=12, group_size=3, max_new_tokens=12, max_resamples=max_resamples)


def sample(environment: Environment, max_resamples: int) -> Sampled:
    return sample_iteration(environment, config(max_resamples), seed=SEED)


def numbers(groups: list[Group]) -> list:
    return [[(r.problem.id, r.token_ids, r.completion.logprobs, r.reward, r.boundaries) for r in g] for g in groups]


def test_without_resamples_it_is_one_call_of_sample_groups(environment):
    sampled = sample(environment, 0)
    problems = environment.task.sample(12, seed=SEED("problems"))
    assert numbers(sampled.groups) == numbers(sample_groups(environment, problems, config(0), seed=SEED("policy")))
    assert (sampled.num_groups_replaced, sampled.num_prompts_too_long) == (0, 0)
    assert any(map(equal_rewards, sampled.groups))  # or the tests below say nothing


def test_enough_resamples_leave_no_equal_group(environment):
    sampled = sample(environment, 50)
    assert len(sampled.groups) == 12
    assert not any(map(equal_rewards, sampled.groups))
    assert all(len(group) == 3 for group in sampled.groups)


def test_what_told_its_responses_apart_is_kept_and_the_others_are_counted(environment):
    """By hand, call by call: every call asks for as many new problems as are missing."""
    kept: list[Group] = []
    num_replaced = 0
    for attempt in range(3):
        again = (attempt,) if attempt else ()
        problems = environment.task.sample(12 - len(kept), seed=SEED("problems", *again))
        found = sample_groups(environment, problems, config(0), seed=SEED("policy", *again))
        if attempt < 2:
            num_replaced += sum(map(equal_rewards, found))
            found = [group for group in found if not equal_rewards(group)]
        kept += found
    sampled = sample(environment, 2)
    assert numbers(sampled.groups) == numbers(kept)
    assert sampled.num_groups_replaced == num_replaced > 0


@pytest.mark.parametrize("max_resamples", [1, 2, 50])
def test_equal_groups_are_only_left_where_the_last_call_sampled_them(environment, max_resamples):
    first, sampled = sample(environment, 0).groups, sample(environment, max_resamples)
    metrics = rollout_metrics(sampled)
    num_equal = sum(map(equal_rewards, sampled.groups))
    assert metrics["rollouts/num_equal_groups"] == num_equal < sum(map(equal_rewards, first))
    assert metrics["rollouts/num_groups_replaced"] == sampled.num_groups_replaced >= sum(map(equal_rewards, first))
    assert metrics["rollouts/num"] == 36
    kept = [group for group in first if not equal_rewards(group)]
    assert numbers(sampled.groups[: len(kept)]) == numbers(kept)


def test_a_world_in_which_all_rewards_are_equal_keeps_what_the_last_call_found(environment):
    class Hopeless(CoinWalk):
        def grade(self, problem, response):
            return replace(super().grade(problem, response), reward=0.0, verdict="wrong")

    sampled = sample(make_environment(Hopeless()), 3)
    assert sampled.num_groups_replaced == 3 * 12
    assert len(sampled.groups) == 12
    assert all(map(equal_rewards, sampled.groups))
    assert {rollout.problem.id for group in sampled.groups for rollout in group} == {
        problem.id for problem in environment.task.sample(12, seed=SEED("problems", 3))
    }


class Named(CoinWalk):
    """The reward of a walk, and its length, which costs a hundredth a step."""

    def grade(self, problem, response):
        grade = super().grade(problem, response)
        return Grade.weighted({"up": grade.reward, "steps": len(response)}, WEIGHTS, grade.verdict)


WEIGHTS = {"up": 1.0, "steps": -0.01}


def test_the_means_of_named_rewards_add_up_to_that_of_the_reward(environment):
    """Walks that the budget cut off included: they have neither."""
    sampled = sample(make_environment(Named()), 0)
    metrics, plain = rollout_metrics(sampled), rollout_metrics(sample(environment, 0))
    assert 0 < metrics["rollouts/num_truncated"] < 36
    assert metrics["reward/named_up"] == plain["reward/mean"]
    assert metrics["reward/mean"] == pytest.approx(metrics["reward/named_up"] - 0.01 * metrics["reward/named_steps"])
    assert metrics.keys() - plain.keys() == {"reward/named_up", "reward/named_steps"}


@pytest.mark.parametrize("max_resamples", [0, 4])
def test_the_seed_decides_everything(environment, max_resamples):
    """Whatever the engine generated before, and in a fresh one."""
    first, again = sample(environment, max_resamples), sample(environment, max_resamples)
    fresh = sample(make_environment(CoinWalk()), max_resamples)
    for other in (again, fresh):
        assert numbers(other.groups) == numbers(first.groups)
        assert other.num_groups_replaced == first.num_groups_replaced
    moved = sample_iteration(environment, config(max_resamples), seed=partial(derive_seed, 4, 0))
    assert numbers(moved.groups) != numbers(first.groups)


class LongPrompts(CoinWalk):
    """Problems of `sample` calls after the first `num_short` have prompts that do not fit."""

    def __init__(self, num_short: int):
        super().__init__()
        self.num_short, self.num_sampled = num_short, 0

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        problems = super().sample(n, seed=seed)
        numbers = range(self.num_sampled, self.num_sampled + n)
        self.num_sampled += n
        return [
            problem if number < self.num_short else replace(problem, prompt="x" * 101)
            for problem, number in zip(problems, numbers, strict=True)
        ]


def test_replacements_that_do_not_fit_are_counted_and_stop_nothing():
    sampled = sample(make_environment(LongPrompts(12)), 2)
    whole = sample(make_environment(CoinWalk()), 0)
    assert numbers(sampled.groups) == numbers([group for group in whole.groups if not equal_rewards(group)])
    num_missing = 12 - len(sampled.groups)
    assert sampled.num_groups_replaced == num_missing > 0
    assert sampled.num_prompts_too_long == 2 * num_missing


def test_no_prompt_that_fits_is_still_an_error():
    with pytest.raises(UserError, match="all 12 prompts are longer than 100 tokens"):
        sample(make_environment(LongPrompts(0)), 2)


def test_an_engine_that_loses_a_completion_is_found_out():
    environment = make_environment()

    class Forgetful:
        usage = environment.engine.usage

        def generate(self, *args, **kwargs):
            return environment.engine.generate(*args, **kwargs)[:-1]

    forgetful = replace(environment, engine=Forgetful())
    config = SamplingConfig(prompts_per_iteration=2, group_size=2, max_new_tokens=4)
    with pytest.raises(RuntimeError, match="3 completions for 4 requests"):
        sample_groups(forgetful, environment.task.sample(2, seed=0), config, seed=0)
