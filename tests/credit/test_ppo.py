"""PPO's critic on the coin walk: a real model whose values are of the right states, and end up near the exact ones."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from coin_walk import TOKENIZER, CoinWalk, exact_value, height, make_environment, make_walker, open_walk
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    GPT2Config,
    MistralConfig,
    Qwen2Config,
)

from vineppo.credit.common import CreditContext
from vineppo.credit.ppo import PPO, PPOConfig
from vineppo.learner.config import CriticConfig, LearnerConfig, OptimConfig
from vineppo.learner.critic import Critic
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.train import TrainRecipe, to_samples, train
from vineppo.models import TinyModelConfig
from vineppo.models.make import make_critic_model, make_tiny_model, value_head
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.runs.metrics import whole_lines
from vineppo.types import Completion, Problem, Rollout, Sample, SamplingParams, UserError

SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)
TINY = TinyModelConfig(num_layers=2, hidden_size=32, num_heads=2, ffn_size=48, context_size=64)


def make_policy(seed: int = 0) -> Any:
    return make_tiny_model(TOKENIZER, TINY, seed)


def make_optim(lr: float) -> OptimConfig:
    return OptimConfig(lr=lr, schedule="constant", warmup_ratio=0.0)


def make_critic(seed: int = 0, *, lr: float = 1e-3, **options: Any) -> Critic:
    config = CriticConfig(precision="float32", optim=make_optim(lr), **options)
    return Critic(config, make_critic_model(make_policy(seed), seed), total_steps=100)


def make_ppo(seed: int = 0, *, lr: float = 1e-3, **options: Any) -> PPO:
    return PPO(PPOConfig(**options), critic=make_critic(seed, lr=lr))


def make_responses(n: int = 20) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    draw = random.Random(3)

    def ids(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(len(TOKENIZER)) for _ in range(draw.randint(shortest, longest)))

    return [(ids(1, 6), ids(1, 12)) for _ in range(n)]


@pytest.fixture(scope="module")
def environment():
    return make_environment(CoinWalk())


@pytest.fixture(scope="module")
def groups(environment):
    return sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


# The model


def test_the_critic_begins_as_the_policy_s_backbone_with_a_fresh_head():
    wide = TINY.model_copy(update={"hidden_size": 1024, "num_layers": 1})
    policy = make_tiny_model(TOKENIZER, wide, seed=0)
    critic = make_critic_model(policy, seed=5)
    ids_BT = torch.randint(len(TOKENIZER), (3, 9), generator=torch.Generator().manual_seed(0))
    ours, theirs = (model.base_model(input_ids=ids_BT).last_hidden_state for model in (critic, policy))
    assert torch.equal(ours, theirs)
    head = value_head(critic)
    assert head.weight.shape == (1, 1024)
    # 1,024 draws: the mean's standard error is s / 32, the deviation's about s / 45
    assert head.weight.std().item() == pytest.approx(1025**-0.5, rel=4 / 45)
    assert head.weight.mean().item() == pytest.approx(0, abs=4 / 32 * 1025**-0.5)
    assert head.bias.tolist() == [0.0]
    expected = ours @ head.weight[0]
    assert torch.allclose(critic(input_ids=ids_BT).logits[..., 0], expected, atol=1e-5)


def test_the_seed_alone_decides_the_head_and_the_policy_keeps_its_own_weights():
    policy = make_policy()
    before = weights(policy)
    first, again, other = (make_critic_model(policy, seed) for seed in (1, 1, 2))
    assert torch.equal(value_head(first).weight, value_head(again).weight)
    assert not torch.equal(value_head(first).weight, value_head(other).weight)
    critic = Critic(CriticConfig(optim=make_optim(0.1)), first, total_steps=10)
    critic.step([replace(make_training_sample(), returns=(1.0, 1.0))])
    assert same(before, weights(policy))


def make_training_sample() -> Sample:
    return Sample((1, 2), (3, 0), (0.0, 0.0), (0.0, 0.0), token_values=(0.0, 0.0), returns=(1.0, 0.5))


# Which state a value is of


def test_values_are_the_head_s_output_at_the_last_token_of_every_state():
    """Each state run alone, without padding or company."""
    critic = make_critic()
    for (prompt, response), values in zip(make_responses(), critic.values(make_responses()), strict=True):
        assert len(values) == len(response) + 1
        for t, value in enumerate(values):
            state = torch.tensor([prompt + response[:t]])
            assert value == pytest.approx(critic.model(input_ids=state).logits[0, -1, 0].item(), abs=1e-5)


def test_a_token_changes_no_value_before_it_and_the_one_after_it():
    critic = make_critic()
    prompt, response = (1, 2), (0, 1, 2, 0, 1, 2, 0, 1)
    before = critic.values([(prompt, response)])[0]
    for t in range(len(response)):
        changed = (*response[:t], (response[t] + 1) % 3, *response[t + 1 :])
        after = critic.values([(prompt, changed)])[0]
        assert after[: t + 1] == pytest.approx(before[: t + 1], abs=1e-6)
        assert abs(after[t + 1] - before[t + 1]) > 1e-3


@pytest.mark.parametrize("microbatch_tokens", [1, 40, 10**6])
def test_values_do_not_depend_on_padding_company_or_order(microbatch_tokens):
    responses = make_responses()
    alone = [make_critic().values([response])[0] for response in responses]
    order = random.Random(1).sample(range(len(responses)), len(responses))
    together = make_critic(microbatch_tokens=microbatch_tokens).values([responses[i] for i in order])
    for i, values in zip(order, together, strict=True):
        assert values == pytest.approx(alone[i], abs=1e-5)


def test_the_values_that_are_trained_are_the_values_that_are_read():
    """A step at the values' own iteration finds nothing to clip, and its loss is half the squared error of those."""
    critic, responses = make_critic(), make_responses()
    draw = random.Random(0)
    samples = []
    for (prompt, response), values in zip(responses, critic.values(responses), strict=True):
        nothing = (0.0,) * len(response)
        returns = tuple(draw.random() for _ in response)
        samples.append(Sample(prompt, response, nothing, nothing, token_values=values[:-1], returns=returns))
    errors = [v - r for s in samples for v, r in zip(s.token_values or (), s.returns or (), strict=True)]
    metrics = critic.step(samples)
    assert metrics["critic/loss"] == pytest.approx(sum(error**2 for error in errors) / 2 / len(errors), rel=1e-5)
    assert metrics["critic/clip_frac"] == 0


def test_gradients_do_not_depend_on_microbatches_or_order(environment, groups):
    samples = to_samples(groups, make_ppo().assign(groups, seed=0).credits)

    def gradients(minibatch: list[Sample], microbatch_tokens: int) -> list[torch.Tensor]:
        critic = make_critic(microbatch_tokens=microbatch_tokens)
        found: list[torch.Tensor] = []
        optimizer_step = critic.optimizer_step
        optimizer_step.optimizer.step = lambda: found.extend(p.grad.clone() for p in optimizer_step.parameters)  # type: ignore[method-assign]
        critic.step(minibatch)
        return found

    whole = gradients(samples, 10**6)
    for tokens, minibatch in ((1, samples), (40, samples[::-1])):
        for one, other in zip(whole, gradients(minibatch, tokens), strict=True):
            assert (one - other).abs().max() < 1e-5
    assert max(gradient.abs().max().item() for gradient in whole) > 1e-2


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


def test_values_that_have_moved_far_enough_towards_their_targets_pull_no_more():
    critic = make_critic(lr=3e-3, value_clip_eps=0.1)
    (before,) = critic.values([((2,), (0, 1))])
    target = tuple(value + 5 for value in before[:-1])
    sample = Sample((2,), (0, 1), (0.0,) * 2, (0.0,) * 2, token_values=before[:-1], returns=target)
    steps = [critic.step([sample]) for _ in range(20)]
    assert steps[0]["critic/grad_norm"] > 1
    assert (steps[-1]["critic/clip_frac"], steps[-1]["critic/grad_norm"]) == (1, 0)
    (after,) = critic.values([((2,), (0, 1))])
    assert all(new > old + 0.1 for new, old in zip(after[:-1], before[:-1], strict=True))


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

    def draw(number: int):
        problems = environment.task.sample(32, seed=number)
        return sample_groups(environment, problems, SAMPLING, seed=1000 + number)

    fresh = [rollout for group in draw(500) for rollout in group]
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
        groups = draw(iteration)
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
        environment = session.setup.make_environment(session.setup.make_engine(), SamplingParams())
        train(cast(TrainRecipe, session.recipe), session, environment, learner, ppo)
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


def test_transformers_opens_a_saved_critic(groups, tmp_path):
    ppo = make_ppo(lr=0.01)
    ppo.update(to_samples(groups, ppo.assign(groups, seed=0).credits))
    ppo.save(tmp_path)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()
    prompt, response = (2,), (0, 1, 0, 0, 1)
    (values,) = ppo.critic.values([(prompt, response)])
    theirs = model(input_ids=torch.tensor([prompt + response])).logits[0, :, 0]
    assert theirs.tolist() == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("architecture", [GPT2Config, Qwen2Config, MistralConfig])
def test_other_architectures_have_critics_too(architecture, tmp_path):
    sizes = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(architecture(**sizes)).eval()
    critic = Critic(CriticConfig(precision="float32"), make_critic_model(policy, 3), total_steps=10)
    assert not value_head(critic.model).weight.equal(value_head(make_critic_model(policy, 4)).weight)
    (values,) = critic.values([((2,), (0, 1, 0))])
    critic.save(tmp_path, {})
    fresh = Critic(CriticConfig(precision="float32"), make_critic_model(policy, 4), total_steps=10)
    fresh.load(tmp_path)
    assert fresh.values([((2,), (0, 1, 0))]) == [values]


def test_make_starts_from_the_model_that_training_started_from():
    policy = make_policy()
    ppo = PPO(PPOConfig(), CreditContext(make_environment(), lambda: policy, total_steps=7, seed=3))
    assert same(weights(ppo.critic.model.base_model), weights(policy.base_model))
    assert ppo.critic.optimizer_step.total_steps == 7
