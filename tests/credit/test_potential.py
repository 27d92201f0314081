"""A reward model as a potential: whatever it says, the policy gradient is on average that of the reward alone."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, cast

import pytest
from coin_walk import make_environment
from tiny_critic import SAMPLING
from tiny_reward_model import save_classifier

from vineppo.config import validate
from vineppo.credit.advantages import leave_one_out
from vineppo.credit.common import CreditContext, assign_credit
from vineppo.credit.potential import Potential, PotentialConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.exact.exhaustive import exact_bias
from vineppo.models import RewardModelConfig
from vineppo.models.make import make_symbol_tokenizer
from vineppo.rollouts import sample_groups
from vineppo.seeding import derive_seed
from vineppo.types import UserError

EXACT = 1e-12


class Arbitrary:
    """A number for every state that has nothing to do with it."""

    def __init__(self, constant: float | None = None):
        self.constant = constant

    def phi(self, token_ids: tuple[int, ...]) -> float:
        return derive_seed("phi", token_ids) / 2**63 if self.constant is None else self.constant

    def values(self, responses: Any) -> list[tuple[float, ...]]:
        return [tuple(self.phi(p + y[:t]) for t in range(len(y) + 1)) for p, y in responses]

    def memory(self) -> dict[str, float]:
        return {}


def make(constant: float | None = None, **options: Any) -> Potential:
    config = PotentialConfig(reward_model=RewardModelConfig(path="none"), **options)
    return Potential(config, reward_model=cast(Any, Arbitrary(constant)))


@pytest.fixture(scope="module")
def groups():
    environment = make_environment()
    return sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)


def after_breaks(text: str) -> list[int]:
    return [i + 1 for i, letter in enumerate(text) if letter == "\n"]


def before_breaks(text: str) -> list[int]:
    return [i for i, letter in enumerate(text) if letter == "\n"]


@pytest.mark.parametrize("group_size", [1, 2, 3])
@pytest.mark.parametrize("group_baseline", [True, False])
@pytest.mark.parametrize("states", ["segments", "tokens"])
def test_any_potential_leaves_the_gradient_where_it_is(states, group_baseline, group_size):
    potential = make(states=states, group_baseline=group_baseline)
    assert exact_bias(lambda _: potential, group_size=group_size, cut=after_breaks) < EXACT


def test_a_cut_that_looks_ahead_biases_what_is_read_at_segments_only():
    """Which state a token's potential is read at then tells of the token."""
    assert exact_bias(lambda _: make(states="tokens"), cut=before_breaks) < EXACT
    assert exact_bias(lambda _: make(states="segments"), cut=before_breaks) > 0.01


def test_it_is_rloo_of_the_shaped_process_rewards(groups):
    """Term by term: what is still earned where every segment also pays Phi(s') - Phi(s), and the end 0 - Phi(s)."""
    phi = Arbitrary().phi
    for group, credits in zip(groups, make().assign(groups, seed=0).credits, strict=True):
        shaped, totals = [], []
        for rollout in group:
            states = [phi(rollout.prompt_ids + rollout.token_ids[:b]) for b in rollout.boundaries[:-1]] + [0.0]
            rewards = [after - before for before, after in pairwise(states)]
            rewards[-1] += rollout.reward
            shaped.append(list(accumulate(reversed(rewards)))[::-1])  # still earned from each segment on
            totals.append(shaped[-1][0])
        others = [total - beyond for total, beyond in zip(totals, leave_one_out(totals), strict=True)]
        for credit, to_go, baseline in zip(credits, shaped, others, strict=True):
            assert credit.segment_advantages == pytest.approx([number - baseline for number in to_go])


def test_a_constant_potential_is_rloo(groups):
    ours, rloo = make(0.3).assign(groups, seed=0).credits, RLOO(RLOOConfig()).assign(groups, seed=0).credits
    for one, other in zip((c for g in ours for c in g), (c for g in rloo for c in g), strict=True):
        assert one.advantages == pytest.approx(other.advantages)


def test_without_the_group_an_advantage_is_the_reward_less_the_potential(groups):
    for group, credits in zip(groups, make(0.25, group_baseline=False).assign(groups, seed=0).credits, strict=True):
        for rollout, credit in zip(group, credits, strict=True):
            assert credit.advantages == (rollout.reward - 0.25,) * len(rollout.token_ids)
            assert credit.values == (*[0.25] * rollout.num_segments, rollout.reward)


def test_a_model_from_a_folder_is_read_at_the_policys_own_tokens(tmp_path, groups):
    save_classifier(tmp_path)
    config = PotentialConfig(reward_model=RewardModelConfig(path=str(tmp_path)), states="tokens")
    potential = Potential(config, CreditContext(make_environment(), device="cpu"))
    assigned = assign_credit(potential, groups, seed=0)
    (credit, *_), (rollout, *_) = assigned.credits[0], groups[0]
    values = potential.reward_model.values([(rollout.prompt_ids, rollout.token_ids)])[0]
    steps = [before - after for before, after in pairwise(values[:-1])]
    assert [after - before for before, after in pairwise(credit.advantages)] == pytest.approx(steps, abs=1e-5)
    assert assigned.metrics["memory/reward_model_parameters_mb"] > 0
    assert assigned.metrics["critic/explained_variance"] < 1


def test_a_model_with_other_tokens_is_refused_before_the_first_rollout(tmp_path):
    save_classifier(tmp_path, tokenizer=make_symbol_tokenizer("abcd"))
    config = PotentialConfig(reward_model=RewardModelConfig(path=str(tmp_path)))
    with pytest.raises(UserError, match="have other ids in its vocabulary"):
        Potential(config, CreditContext(make_environment(), device="cpu"))


def test_the_recipe_must_name_a_model():
    with pytest.raises(UserError, match=r"test: 'credit\.reward_model' is required"):
        validate(PotentialConfig, {"name": "potential"}, source="test", section="credit")
