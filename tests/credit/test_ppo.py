"""PPO on the coin walk: credit from a critic's values, and a critic whose values end up near the exact ones."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from coin_walk import TOKENIZER, CoinWalk, exact_value, height, make_environment, make_walker, open_walk
from tiny_critic import SAMPLING, TINY, make_optim, make_policy, make_ppo, same, weights

from vineppo.credit.common import CreditContext
from vineppo.credit.ppo import PPO, PPOConfig, credit_metrics
from vineppo.learner.config import CriticConfig, LearnerConfig, OptimConfig
from vineppo.learner.critic import Critic
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.samples import to_samples
from vineppo.methods.train import TrainRecipe, train
from vineppo.models.make import make_critic_model, make_tiny_model
from vineppo.rollouts import sample_groups
from vineppo.runs.metrics import whole_lines
from vineppo.types import Completion, Problem, Rollout, SamplingParams, UserError


@pytest.fixture(scope="module")
def environment():
    return make_environment(CoinWalk())


@pytest.fixture(scope="module")
def groups(environment):
    return sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)


# Credit


def make_rollout(length: int, reward: float, finish_reason: Any = "eos") -> Rollout:
    completion = Completion((0,) * length, (0.0,) * length, finish_reason, 0)
    boundaries = (0, *range(2, length, 2), length)
    return Rollout(Problem("p", "x", "up"), (2,), completion, "", reward, "wrong", boundaries, length)


def test_with_gamma_and_lambda_1_an_advantage_is_the_reward_minus_the_value():
    values = (0.3, 0.5, 0.2, 0.9, 0.7)
    credit = make_ppo().credit(make_rollout(4, 1.0), values)
    assert credit.advantages == pytest.approx([1 - value for value in values[:-1]])
    assert credit.returns == pytest.approx([1.0] * 4)
    assert credit.token_values == values[:-1]


def test_with_lambda_0_an_advantage_is_what_the_value_changes_by():
    credit = make_ppo(gae_lambda=0.0).credit(make_rollout(4, 1.0), (0.3, 0.5, 0.2, 0.9, 0.7))
    assert credit.advantages == pytest.approx([0.2, -0.3, 0.7, 1 - 0.9])  # the state after the end is worth nothing
    assert credit.returns == pytest.approx([0.5, 0.2, 0.9, 1.0])


def test_gamma_and_lambda_discount():
    credit = make_ppo(gamma=0.5, gae_lambda=0.4).credit(make_rollout(3, 1.0), (0.1, 0.2, 0.4, 9.0))
    deltas = (0.5 * 0.2 - 0.1, 0.5 * 0.4 - 0.2, 1.0 - 0.4)
    expected = (deltas[0] + 0.2 * deltas[1] + 0.04 * deltas[2], deltas[1] + 0.2 * deltas[2], deltas[2])
    assert credit.advantages == pytest.approx(expected)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.6, 0.0])
def test_what_the_environment_writes_is_no_step(gae_lambda):
    """As if a tool's reply were part of the state after the token that called it: advantages, returns, metrics."""
    ppo = make_ppo(gamma=0.9, gae_lambda=gae_lambda)
    values, mask = (0.3, 9.0, 8.0, 0.5, 0.2, 7.0), (True, False, False, True, True)
    rollout = replace(
        make_rollout(5, 1.0), boundaries=(0, 2, 4, 5), segment_rewards=(0.25, 0.25, 0.5), action_mask=mask
    )
    credit = ppo.credit(rollout, values)
    plain = replace(make_rollout(3, 1.0), boundaries=(0, 1, 2, 3), segment_rewards=(0.25, 0.25, 0.5))
    expected = ppo.credit(plain, (0.3, 0.5, 0.2, 7.0))
    assert [credit.advantages[t] for t in (0, 3, 4)] == pytest.approx(expected.advantages)
    assert [credit.returns[t] for t in (0, 3, 4)] == pytest.approx(expected.returns)  # type: ignore[index]
    assert credit_metrics([rollout], [credit]) == pytest.approx(credit_metrics([plain], [expected]))


@pytest.mark.parametrize(
    ("bootstrap", "finish_reason", "ends_in"),
    [(False, "length", 0.0), (True, "length", 0.7), (True, "eos", 0.0), (True, "stop", 0.0)],
)
def test_a_response_that_was_cut_off_may_end_in_the_critic_s_value(bootstrap, finish_reason, ends_in):
    values = (0.3, 0.5, 0.2, 0.7)
    credit = make_ppo(bootstrap_truncated=bootstrap).credit(make_rollout(3, 0.0, finish_reason), values)
    assert credit.advantages == pytest.approx([ends_in - value for value in values[:-1]])
    assert credit.returns == pytest.approx([ends_in] * 3)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_returns_are_advantages_plus_values_of_the_right_rollouts(groups, gae_lambda):
    ppo = make_ppo(gae_lambda=gae_lambda)
    for group, credits in zip(groups, ppo.assign(groups, seed=0).credits, strict=True):
        for rollout, credit in zip(group, credits, strict=True):
            values = ppo.critic.values([(rollout.prompt_ids, rollout.token_ids)])[0]
            assert credit.token_values == pytest.approx(values[:-1], abs=1e-5)
            total = [a + v for a, v in zip(credit.advantages, values, strict=False)]
            assert credit.returns == pytest.approx(total, abs=1e-5)
            assert credit.advantages[-1] == pytest.approx(rollout.reward - values[-2], abs=1e-5)


def test_permuting_rollouts_permutes_credits(groups):
    ppo = make_ppo()
    straight = ppo.assign(groups, seed=0).credits
    backwards = ppo.assign([group[::-1] for group in groups[::-1]], seed=0).credits
    for ones, others in zip(straight, backwards[::-1], strict=True):
        for one, other in zip(ones, others[::-1], strict=True):
            assert one.advantages == pytest.approx(other.advantages, abs=1e-5)


def test_the_metrics_are_those_of_the_tokens(groups):
    ppo = make_ppo()
    assigned = ppo.assign(groups, seed=0)
    credits = [credit for group_credits in assigned.credits for credit in group_credits]
    rewards = torch.tensor([r.reward for group in groups for r in group for _ in r.token_ids], dtype=torch.float64)
    values = torch.tensor([value for credit in credits for value in credit.token_values or ()], dtype=torch.float64)
    metrics = assigned.metrics
    assert metrics["credit/value_mean"] == pytest.approx(values.mean().item())
    assert metrics["credit/value_std"] == pytest.approx(values.std(correction=0).item())
    explained = 1 - (rewards - values).var() / rewards.var()
    assert metrics["critic/explained_variance"] == pytest.approx(explained.item())
    assert ppo.memory()["memory/critic_parameters_mb"] == sum(p.nbytes for p in ppo.critic.model.parameters()) / 2**20


# Learning


def test_updates_lower_the_value_loss(groups):
    ppo = make_ppo(lr=1e-4)
    minibatch = to_samples(groups, ppo.assign(groups, seed=0).credits)
    losses = [ppo.update(minibatch)["critic/loss"] for _ in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]


def test_the_critic_comes_to_know_the_walk(environment):
    """From 5,120 rollouts: its values of fresh states are near the exact ones, though what it learnt from is 0 or 1."""
    num_iterations, num_updates = 40, 2
    optim = OptimConfig(lr=3e-3, schedule="linear", warmup_ratio=0.1)
    critic = Critic(
        CriticConfig(precision="float32", optim=optim),
        make_critic_model(make_policy(), 0),
        total_steps=num_iterations * num_updates,
    )
    ppo = PPO(PPOConfig(), critic=critic)

    def sample(number: int):
        problems = environment.task.sample(32, seed=number)
        return sample_groups(environment, problems, SAMPLING, seed=1000 + number)

    fresh = [rollout for group in sample(500) for rollout in group]
    exact_N = torch.tensor(
        [
            exact_value(height(rollout.text[:t]), SAMPLING.max_new_tokens - t)  # a token is a character
            for rollout in fresh
            for t in range(len(rollout.token_ids))
        ]
    )

    def errors() -> torch.Tensor:
        found = critic.values([(rollout.prompt_ids, rollout.token_ids) for rollout in fresh])
        return torch.tensor([value for values in found for value in values[:-1]]) - exact_N

    before_N = errors()
    for iteration in range(num_iterations):
        groups = sample(iteration)
        minibatch = to_samples(groups, ppo.assign(groups, seed=0).credits)
        for _ in range(num_updates):
            ppo.update(minibatch)
    after_N = errors()
    assert after_N.square().mean().sqrt() < 0.09 < 0.2 < exact_N.std() < before_N.square().mean().sqrt()
    assert after_N.mean().abs() < 0.04


# The loop


def run(folder: Path, ppo: PPO, learner: PolicyLearner, num_iterations: int, *sinks: Any) -> list[dict[str, Any]]:
    """The lines of its metrics."""
    tree = {"credit": {"name": "ppo"}, "train": {"num_iterations": num_iterations, "minibatch_size": 8}}
    with open_walk(folder, tree, sinks=sinks) as session:
        session.setup.policy.load_state_dict(learner.model.state_dict())
        recipe = cast(TrainRecipe, session.recipe)
        environment = session.setup.make_environment(session.setup.make_engine(), recipe.sampling)
        train(recipe, session, environment, learner, ppo)
    return [json.loads(line) for line in whole_lines(folder / "metrics.jsonl")]


def make_learner() -> PolicyLearner:
    config = LearnerConfig(optim=make_optim(0.05), precision="float32", kl_coef=0.0)
    return PolicyLearner(config, make_walker(), None, sampling=SamplingParams(), total_steps=100)


class Snapshots:
    """A metrics sink that takes the weights at the end of every iteration."""

    def __init__(self, *models: Any):
        self.models = models
        self.taken = [[weights(model) for model in models]]

    def write(self, iteration: int, metrics: Any) -> None:
        self.taken.append([weights(model) for model in self.models])

    def close(self) -> None:
        pass


def test_while_the_critic_warms_up_the_policy_does_not_move(tmp_path):
    ppo, learner = make_ppo(warmup_iterations=2), make_learner()
    snapshots = Snapshots(learner.model, ppo.critic.model)
    lines = run(tmp_path, ppo, learner, 4, snapshots)
    policies, critics = zip(*snapshots.taken, strict=True)
    assert [not same(before, after) for before, after in pairwise(policies)] == [False, False, True, True]
    assert [not same(before, after) for before, after in pairwise(critics)] == [True] * 4
    assert [line.get("optim/num_steps", 0) for line in lines] == [0, 0, 4, 4]
    assert [line["critic/num_steps"] for line in lines] == [4] * 4


def test_credit_that_was_thrown_away_is_not_counted_as_warm_up(groups, tmp_path):
    """A stop between `assign` and the first step: what is saved then must not be an iteration further."""
    ppo = make_ppo(warmup_iterations=1)
    assert not ppo.assign(groups, seed=0).trains_policy
    ppo.save(tmp_path)
    resumed = make_ppo(warmup_iterations=1)
    resumed.load(tmp_path)
    assigned = resumed.assign(groups, seed=0)
    assert not assigned.trains_policy
    resumed.update(to_samples(groups, assigned.credits))
    assert resumed.assign(groups, seed=1).trains_policy


def test_the_policy_learns_to_end_above_its_start(tmp_path):
    rewards = [line["reward/mean"] for line in run(tmp_path, make_ppo(), make_learner(), 12)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards


# Save and load


def test_a_loaded_critic_goes_on_exactly(groups, tmp_path):
    ppo = make_ppo(lr=0.01, warmup_iterations=1)
    ppo.update(to_samples(groups, ppo.assign(groups, seed=0).credits))
    ppo.save(tmp_path)
    resumed = make_ppo(seed=9, lr=0.01, warmup_iterations=1)
    resumed.load(tmp_path)
    for estimator in (ppo, resumed):
        assigned = estimator.assign(groups, seed=1)
        assert assigned.trains_policy
        for _ in range(2):
            estimator.update(to_samples(groups, assigned.credits))
    assert ppo.assign(groups, seed=2) == resumed.assign(groups, seed=2)
    assert same(weights(ppo.critic.model), weights(resumed.critic.model))
    ones, others = (p.critic.optimizer_step.state_dict()["optimizer"]["state"] for p in (ppo, resumed))
    for number, moments in ones.items():
        assert all(torch.equal(moment, others[number][name]) for name, moment in moments.items())
    assert (resumed.critic.optimizer_step.num_steps, resumed.num_iterations) == (3, 2)


def test_what_another_model_s_critic_left_is_refused(groups, tmp_path):
    ppo = make_ppo()
    ppo.update(to_samples(groups, ppo.assign(groups, seed=0).credits))
    ppo.save(tmp_path)
    state = torch.load(tmp_path / "critic" / "trainer.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "critic" / "trainer.pt")
    with pytest.raises(UserError, match=r"critic/trainer\.pt: .*embed_tokens\.weight has a exp_avg of"):
        make_ppo().load(tmp_path)
    narrow = TINY.model_copy(update={"hidden_size": 16})
    make_critic_model(make_tiny_model(TOKENIZER, narrow, 0), 0).save_pretrained(tmp_path / "critic")
    with pytest.raises(UserError, match="another architecture"):
        make_ppo().load(tmp_path)


def test_make_starts_from_the_model_that_training_started_from():
    policy = make_policy()
    ppo = PPO(PPOConfig(), CreditContext(make_environment(), lambda: policy, total_steps=7, seed=3))
    assert same(weights(ppo.critic.model.base_model), weights(policy.base_model))
    assert ppo.critic.optimizer_step.total_steps == 7
