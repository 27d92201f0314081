"""The critic of tokens on a tiny model: what it may touch, what it comes to know, and that it goes on from a file."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from coin_walk import TOKENIZER
from tiny_critic import make_optim, make_policy, same, weights

from vineppo.learner.action_critic import HeadCritic
from vineppo.learner.config import ActionCriticConfig
from vineppo.types import Completion, Problem, Rollout, UserError

UP, DOWN, EOS = (TOKENIZER.get_vocab()[token] for token in ("u", "d", "<eos>"))
PROMPT = tuple(TOKENIZER.encode("x"))
LIKELIEST = ((UP, math.log(0.45)), (DOWN, math.log(0.35)), (EOS, math.log(0.2)))


def make_critic(seed: int = 0, *, lr: float = 3e-3, **options: Any) -> HeadCritic:
    config = ActionCriticConfig(width=32, precision="float32", optim=make_optim(lr), **options)
    return HeadCritic(config, make_policy(), seed=seed)


def make_rollouts(n: int, seed: int = 0, *, scale: float = 1.0, mask: bool = False) -> list[Rollout]:
    """Walks of three steps that earn `scale` if the last is up; with `mask` the second is not the policy's."""
    rng, found = random.Random(seed), []
    for _ in range(n):
        tokens = (*rng.choices((UP, DOWN), k=3), EOS)
        completion = Completion(tokens, (math.log(0.4),) * 4, "eos", 0, (LIKELIEST,) * 4)
        action_mask = (True, False, True, True) if mask else None
        reward = scale * (tokens[2] == UP)
        problem = Problem("p", "x", "")
        found.append(Rollout(problem, PROMPT, completion, "", reward, "correct", (0, 4), 9, action_mask=action_mask))
    return found


@pytest.mark.parametrize("backbone", ["policy", "own"])
def test_before_it_has_learnt_all_tokens_are_worth_the_same(backbone):
    for values_LM in make_critic(backbone=backbone).action_values(make_rollouts(3)):
        assert values_LM.tolist() == [[0.5] * 3] * 4


@pytest.mark.parametrize("backbone", ["policy", "own"])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_it_comes_to_know_which_token_decides(backbone, scale):
    """Before the third token up is worth all, down nothing; before the first both are worth the half."""
    critic = make_critic(backbone=backbone, num_epochs=8)
    first = critic.learn(make_rollouts(64, scale=scale), seed=1)["critic/loss"]
    for i in range(4):
        last = critic.learn(make_rollouts(64, 1 + i, scale=scale), seed=1)["critic/loss"]
    assert last < 0.8 * first
    values = np.mean(critic.action_values(make_rollouts(16, 9, scale=scale)), axis=0) / scale
    assert values[2][:2] == pytest.approx([1, 0], abs=0.15)
    assert values[0][:2] == pytest.approx([0.5, 0.5], abs=0.2)


def test_the_policy_that_is_read_stays_as_it_is():
    critic = make_critic()
    before = weights(critic.policy)
    critic.learn(make_rollouts(8), seed=0)
    assert same(before, weights(critic.policy))
    assert all(parameter.grad is None for parameter in critic.policy.parameters())
    assert not critic.policy.training


def test_a_backbone_of_its_own_learns():
    critic = make_critic(backbone="own", num_epochs=2)
    before = weights(critic.policy)
    critic.learn(make_rollouts(8), seed=0)
    assert not same(before, weights(critic.policy))


def test_how_the_work_is_cut_changes_nothing():
    rollouts = make_rollouts(12)
    critics = [make_critic(microbatch_tokens=tokens, minibatch_size=6) for tokens in (8, 8192)]
    for critic in critics:
        critic.learn(rollouts, seed=3)
    one, other = (np.stack(critic.action_values(rollouts)) for critic in critics)
    assert one == pytest.approx(other, abs=1e-5)


def test_what_was_read_to_judge_is_what_is_learnt_from():
    """Not read again: the policy may have taken steps since. Vines, which nobody judged, are read."""
    rollouts, vines = make_rollouts(6, mask=True), make_rollouts(3, 1)
    plain, judging, moved = (make_critic() for _ in range(3))
    for critic in (judging, moved):
        critic.action_values(rollouts)
    with torch.no_grad():
        for parameter in moved.policy.base_model.parameters():
            parameter.mul_(2)
    for critic in (plain, judging):
        critic.learn([*rollouts, *vines], seed=0)
    moved.learn(rollouts, seed=0)
    expected = make_critic()
    expected.learn(rollouts, seed=0)
    for one, other in ((plain, judging), (expected, moved)):
        for weight, same_weight in zip(weights(one.model), weights(other.model), strict=True):
            assert torch.allclose(weight, same_weight, atol=1e-5)


def test_what_the_environment_wrote_teaches_nothing():
    """Another token in its place, which no later state sees where nothing else changes, leaves the loss as it was."""
    losses = []
    for second in (UP, DOWN):
        (rollout,) = make_rollouts(1, mask=True)
        completion = Completion((UP, second, UP, EOS)[:2], (0.0, 0.0), "length", 0, (LIKELIEST,) * 2)
        short = replace(rollout, completion=completion, action_mask=(True, False), boundaries=(0, 2))
        losses.append(make_critic().learn([short], seed=0))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("backbone", ["policy", "own"])
def test_a_loaded_critic_goes_on_exactly(backbone, tmp_path):
    critic, resumed = make_critic(backbone=backbone), make_critic(5, backbone=backbone)
    critic.learn(make_rollouts(16, scale=2.0), seed=0)
    critic.save(tmp_path / "critic")
    resumed.load(tmp_path / "critic")
    for one in (critic, resumed):
        one.learn(make_rollouts(16, 1), seed=1)
    assert same(weights(critic.model), weights(resumed.model))
    fresh = make_rollouts(3, 2)
    assert np.array_equal(critic.action_values(fresh), resumed.action_values(fresh))
    assert float(resumed.model.highest) == 2.0
    assert critic.memory() == resumed.memory()


def test_what_another_critic_left_is_refused(tmp_path):
    make_critic().save(tmp_path)
    with pytest.raises(UserError, match=r"critic\.pt"):
        make_critic(backbone="own").load(tmp_path)
    torch.save([], tmp_path / "critic.pt")
    with pytest.raises(UserError, match=r"critic\.pt"):
        make_critic().load(tmp_path)


def test_checkpointing_goes_with_a_backbone_of_its_own():
    make_critic(backbone="own", gradient_checkpointing=True).learn(make_rollouts(4), seed=0)
    with pytest.raises(ValueError, match="own"):
        ActionCriticConfig(gradient_checkpointing=True)
