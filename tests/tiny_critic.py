"""A critic of a tiny model, PPO with it, and responses to value and to learn from."""

from __future__ import annotations

import random
from typing import Any

import torch
from coin_walk import TOKENIZER

from vineppo.credit.ppo import PPO, PPOConfig
from vineppo.learner.config import CriticConfig, OptimConfig
from vineppo.learner.critic import Critic
from vineppo.models import TinyModelConfig
from vineppo.models.make import make_critic_model, make_tiny_model
from vineppo.rollouts import SamplingConfig
from vineppo.sample import Sample

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
    rng = random.Random(3)

    def ids(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(len(TOKENIZER)) for _ in range(rng.randint(shortest, longest)))

    return [(ids(1, 6), ids(1, 12)) for _ in range(n)]


def make_samples(critic: Critic) -> list[Sample]:
    """Responses with the critic's values and other returns."""
    responses, rng = make_responses(), random.Random(0)
    samples = []
    for (prompt, response), values in zip(responses, critic.values(responses), strict=True):
        nothing = (0.0,) * len(response)
        returns = tuple(rng.random() for _ in response)
        samples.append(Sample(prompt, response, nothing, nothing, token_values=values[:-1], returns=returns))
    return samples


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))
