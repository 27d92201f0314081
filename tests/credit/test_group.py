"""GRPO and RLOO: what comparison with siblings gives, written as loops, and what must not matter to it."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import pytest

from vineppo.credit.advantages import leave_one_out
from vineppo.credit.grpo import GRPO, GRPOConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.states import state_at, state_key
from vineppo.credit.vineppo import make_credit
from vineppo.protocols import LearningEstimator
from vineppo.types import Assigned, Completion, Group, Problem, Rollout, ValueEstimate

ESTIMATORS = {
    "grpo": GRPO(GRPOConfig()),
    "grpo-sample-std": GRPO(GRPOConfig(std="sample")),
    "dr-grpo": GRPO(GRPOConfig(divide_by_std=False)),
    "rloo": RLOO(RLOOConfig()),
}


@pytest.fixture(params=ESTIMATORS)
def estimator(request):
    return ESTIMATORS[request.param]


def make_rollout(name: str, reward: float, boundaries: tuple[int, ...] = (0, 2, 3)) -> Rollout:
    length = boundaries[-1]
    completion = Completion(tuple(range(length)), (0.0,) * length, "eos", 0)
    verdict = "correct" if reward else "wrong"
    return Rollout(Problem(name, "p", "a"), (1,), completion, "", reward, verdict, boundaries, 20)


def make_group(name: str, rewards: list[float]) -> Group:
    return [make_rollout(name, reward, (0, 1, 2 + i)) for i, reward in enumerate(rewards)]


def make_groups(seed: int = 0, *, lowest: float = 0.0, highest: float = 1.0) -> list[Group]:
    rng = random.Random(seed)
    return [make_group(f"p{i}", [rng.uniform(lowest, highest) for _ in range(rng.randint(2, 9))]) for i in range(12)]


def advantages_of(assigned: Assigned) -> list[list[float]]:  # [P][G]
    return [[credit.advantages[0] for credit in credits] for credits in assigned.credits]


def with_rewards(groups: list[Group], change) -> list[Group]:
    return [[replace(rollout, reward=change(rollout.reward)) for rollout in group] for group in groups]


@pytest.mark.parametrize("size", [2, 3, 4, 8, 16])
def test_the_sample_s_deviation_makes_advantages_smaller_by_a_factor_of_the_group_s_size_alone(size):
    rng = random.Random(size)
    groups = [make_group(f"p{i}", [rng.random() for _ in range(size)]) for i in range(5)]
    ones, others = (
        advantages_of(GRPO(GRPOConfig(std=std, std_eps=1e-15)).assign(groups, seed=0))
        for std in ("population", "sample")
    )
    for population, sample in zip(ones, others, strict=True):
        assert population == pytest.approx([a * (size / (size - 1)) ** 0.5 for a in sample], rel=1e-9)


def test_grpo_is_the_distance_from_the_mean_in_standard_deviations():
    groups = make_groups()
    for group, found in zip(groups, advantages_of(ESTIMATORS["grpo"].assign(groups, seed=0)), strict=True):
        rewards = [rollout.reward for rollout in group]
        mean = sum(rewards) / len(rewards)
        variance = sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
        assert found == pytest.approx([(reward - mean) / (variance**0.5 + 1e-4) for reward in rewards], abs=1e-12)


def test_dr_grpo_is_the_distance_from_the_mean():
    groups = make_groups()
    for group, found in zip(groups, advantages_of(ESTIMATORS["dr-grpo"].assign(groups, seed=0)), strict=True):
        mean = sum(rollout.reward for rollout in group) / len(group)
        assert found == pytest.approx([rollout.reward - mean for rollout in group], abs=1e-12)


def test_rloo_is_the_distance_from_the_mean_of_the_others():
    groups = make_groups()
    for group, found in zip(groups, advantages_of(ESTIMATORS["rloo"].assign(groups, seed=0)), strict=True):
        for i, (rollout, advantage) in enumerate(zip(group, found, strict=True)):
            others = [other.reward for j, other in enumerate(group) if j != i]
            assert advantage == pytest.approx(rollout.reward - sum(others) / len(others), abs=1e-12)


def test_rloo_is_dr_grpo_stretched_by_g_over_g_minus_1():
    groups = make_groups()
    pairs = zip(*(advantages_of(ESTIMATORS[name].assign(groups, seed=0)) for name in ("rloo", "dr-grpo")), strict=True)
    for ours, theirs in pairs:
        stretch = len(ours) / (len(ours) - 1)
        assert ours == pytest.approx([stretch * advantage for advantage in theirs], abs=1e-12)


def test_all_tokens_of_a_response_have_one_advantage(estimator):
    groups = make_groups()
    for group, credits in zip(groups, estimator.assign(groups, seed=0).credits, strict=True):
        for rollout, credit in zip(group, credits, strict=True):
            assert set(credit.advantages) == {credit.advantages[0]}
            assert len(credit.advantages) == len(rollout.token_ids)
            assert credit.boundaries == rollout.boundaries
            assert (credit.values, credit.token_values, credit.returns) == (None, None, None)


def test_advantages_of_a_group_sum_to_0(estimator):
    for found in advantages_of(estimator.assign(make_groups(), seed=0)):
        assert sum(found) == pytest.approx(0, abs=1e-12)


def test_equal_rewards_give_exactly_0_and_are_counted(estimator):
    """1/10 three times has a mean, in floats, that is not 1/10."""
    equal = [make_group(f"e{i}", [reward] * 3) for i, reward in enumerate((0.0, 0.1, 1.0))]
    assigned = estimator.assign([*equal, make_group("u", [0.0, 0.25, 1.0])], seed=0)
    assert advantages_of(assigned)[:3] == [[0.0] * 3] * 3
    assert all(advantage != 0 for advantage in advantages_of(assigned)[3])
    metrics = assigned.metrics
    assert metrics["credit/zero_frac"] == pytest.approx(9 / 12)
    flat = [advantage for in_group in advantages_of(assigned) for advantage in in_group]
    assert metrics["credit/advantage_std"] == pytest.approx(fmean(a * a for a in flat) ** 0.5)


def test_a_lone_response_has_nothing_to_be_compared_with(estimator):
    assigned = estimator.assign([make_group("p", [1.0]), make_group("q", [0.0])], seed=0)
    assert advantages_of(assigned) == [[0.0], [0.0]]
    assert leave_one_out([0.5]) == [0.0]


def test_permuting_groups_and_siblings_permutes_credits(estimator):
    groups = make_groups()
    straight = estimator.assign(groups, seed=0).credits
    assert estimator.assign(groups[::-1], seed=1).credits == straight[::-1]
    turned = estimator.assign([group[1:] + group[:1] for group in groups], seed=0).credits
    for one, other in zip(straight, turned, strict=True):
        assert [c.advantages for c in other] == [pytest.approx(c.advantages, abs=1e-12) for c in one[1:] + one[:1]]


def test_a_group_s_credit_does_not_depend_on_the_other_groups(estimator):
    groups = make_groups()
    assert [estimator.assign([group], seed=0).credits[0] for group in groups] == estimator.assign(
        groups, seed=0
    ).credits


def test_adding_a_constant_to_all_rewards_changes_nothing(estimator):
    groups = make_groups(highest=0.7)
    shifted = with_rewards(groups, lambda reward: reward + 0.3)
    for one, other in zip(
        advantages_of(estimator.assign(groups, seed=0)),
        advantages_of(estimator.assign(shifted, seed=0)),
        strict=True,
    ):
        assert one == pytest.approx(other, abs=1e-11)


def test_adding_a_constant_to_all_rewards_changes_no_vineppo_advantage():
    """Vines and rollouts alike: a value is a mean of rewards, an advantage a difference of values."""
    rng = random.Random(3)
    rollout = make_rollout("p", 0.5, (0, 2, 3, 7))
    keys = [state_key(state_at(rollout, boundary)) for boundary in rollout.boundaries[:-1]]
    rewards = {key: tuple(rng.uniform(0, 0.7) for _ in range(9)) for key in keys}

    def advantages(shift: float) -> tuple[float, ...]:
        estimates = {
            key: ValueEstimate(*key, tuple(reward + shift for reward in of_key)) for key, of_key in rewards.items()
        }
        return make_credit(replace(rollout, reward=0.5 + shift), rollout.boundaries, estimates).advantages

    assert advantages(0.3) == pytest.approx(advantages(0.0), abs=1e-12)
    assert len(set(advantages(0.0))) == 3


@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_scaling_rewards_scales_advantages_unless_they_are_divided_by_their_deviation(scale):
    groups = make_groups()
    scaled = with_rewards(groups, lambda reward: scale * reward)
    for name, law in (("grpo", 1.0), ("dr-grpo", scale), ("rloo", scale)):
        # std_eps alone breaks GRPO's law, so here it is next to nothing
        estimator = GRPO(GRPOConfig(std_eps=1e-15)) if name == "grpo" else ESTIMATORS[name]
        before, after = (advantages_of(estimator.assign(of, seed=0)) for of in (groups, scaled))
        assert after == [pytest.approx([law * advantage for advantage in one], rel=1e-9) for one in before]


def test_grpo_s_advantages_have_variance_1_within_a_group():
    for found in advantages_of(ESTIMATORS["grpo"].assign(make_groups(), seed=0)):
        assert fmean(advantage**2 for advantage in found) == pytest.approx(1, abs=0.01)  # std_eps is 1e-4


def test_nothing_is_learnt_between_iterations(estimator):
    assert not isinstance(estimator, LearningEstimator)
