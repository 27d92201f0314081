"""The critic: a real model whose values are of the right states, and which another program can open."""

from __future__ import annotations

import random

import pytest
import torch
from coin_walk import TOKENIZER
from tiny_critic import TINY, make_critic, make_optim, make_policy, make_responses, make_samples, same, weights
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    GPT2Config,
    MistralConfig,
    Qwen2Config,
)

from vineppo.learner.config import CriticConfig
from vineppo.learner.critic import Critic
from vineppo.models.make import make_critic_model, make_tiny_model, value_head
from vineppo.sample import Sample

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
    critic.step(make_samples(critic))
    assert same(before, weights(policy))


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
    critic = make_critic()
    samples = make_samples(critic)
    errors = [v - r for s in samples for v, r in zip(s.token_values or (), s.returns or (), strict=True)]
    metrics = critic.step(samples)
    assert metrics["critic/loss"] == pytest.approx(sum(error**2 for error in errors) / 2 / len(errors), rel=1e-5)
    assert metrics["critic/clip_frac"] == 0


def test_gradients_do_not_depend_on_microbatches_or_order():
    samples = make_samples(make_critic())

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


# Learning


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


# Save and load


def test_transformers_opens_a_saved_critic(tmp_path):
    critic = make_critic(lr=0.01)
    critic.step(make_samples(critic))
    critic.save(tmp_path, {})
    model = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    prompt, response = (2,), (0, 1, 0, 0, 1)
    (values,) = critic.values([(prompt, response)])
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
