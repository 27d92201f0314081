"""A learner of a tiny model in float64, samples for it, and losses written down a second time as plain loops."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vineppo.learner.config import LearnerConfig, OptimConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.learner.policy_loss import policy_loss
from vineppo.sample import Sample
from vineppo.types import SamplingParams

TEMPERATURE = 0.7

AGGREGATIONS: list[dict[str, Any]] = [
    {},
    {"loss_aggregation": "sequence"},
    {"loss_aggregation": "constant", "loss_length": 9},
]


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def make_learner(
    model: Any = None, reference: Any = None, lr: float = 1e-3, top_p: float = 1.0, top_k: int = 0, **options: Any
) -> PolicyLearner:
    optim = OptimConfig(lr=lr, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e9)
    config = LearnerConfig(**{"precision": "float32", "optim": optim, "kl_coef": 0.1, **options})
    model = model or make_model()
    sampling = SamplingParams(TEMPERATURE, top_p, top_k)
    return PolicyLearner(config, model, reference, sampling=sampling, total_steps=100)


def make_samples(n: int = 8) -> list[Sample]:
    rng = random.Random(5)
    samples = []
    for _ in range(n):
        prompt = tuple(rng.randrange(20) for _ in range(rng.randint(1, 6)))
        response = tuple(rng.randrange(20) for _ in range(rng.randint(1, 12)))
        advantages = tuple(rng.gauss(0, 1) for _ in response)
        samples.append(Sample(prompt, response, advantages, (0.0,) * len(response)))
    return samples


def make_scored(learner: PolicyLearner, samples: list[Sample] | None = None) -> list[Sample]:
    """With old log-probs that differ from the current ones, so that ratios are not all 1 and some are clipped, and
    sampling log-probs that differ from those."""
    rng = random.Random(6)
    return [
        replace(
            sample,
            old_logprobs=tuple(x + rng.gauss(0, 0.3) for x in sample.old_logprobs or ()),
            sampling_logprobs=tuple(x + rng.gauss(0, 0.3) for x in sample.old_logprobs or ()),
        )
        for sample in learner.score(samples or make_samples())
    ]


def gradients(
    learner: PolicyLearner, minibatch: Any, loss: Callable[..., Any] = policy_loss, **options: Any
) -> list[torch.Tensor]:
    """Those that the optimizer is handed."""
    found: list[torch.Tensor] = []
    optimizer_step = learner.optimizer_step
    optimizer_step.optimizer.step = lambda: found.extend(p.grad.clone() for p in optimizer_step.parameters)  # type: ignore[method-assign]
    learner.step(minibatch, loss, **options)
    return found


def expect_equal(ones: list[torch.Tensor], others: Any, within: float = 1e-10) -> None:
    for one, other in zip(ones, others, strict=True):
        assert (one - other).abs().max() < within
    assert max(one.abs().max().item() for one in ones) > 1e-3


def snapshot(learner: PolicyLearner) -> list[torch.Tensor]:
    """Weights and moments."""
    tensors = [parameter.detach().clone() for parameter in learner.optimizer_step.parameters]
    for state in learner.optimizer_step.optimizer.state_dict()["state"].values():
        tensors += [torch.as_tensor(value).clone() for value in state.values()]
    return tensors


# The second way: the whole [T, V] softmax of each response alone


def log_softmax(model: Any, sample: Sample) -> torch.Tensor:  # [L, V]
    ids = torch.tensor([sample.prompt_ids + sample.response_ids])
    return (model(ids).logits[0, -1 - len(sample.response_ids) : -1] / TEMPERATURE).log_softmax(-1)


def of_targets(rows_LV: torch.Tensor, sample: Sample) -> torch.Tensor:  # [L]
    return rows_LV.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0]


def column(numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
