"""AdamW with fp32 master weights, learning-rate schedules as functions of the step, and the global gradient norm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vineppo.learner.config import OptimConfig


def make_optimizer(config: OptimConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def load_moments(optimizer: torch.optim.AdamW, names: Mapping[Any, str], state: Any) -> None:
    """Moments and step counts of a `state_dict()` of the same model's optimizer; rates and such stay as they are.

    Raises ValueError where they are another model's: torch checks no shapes, and its fused kernel would read and write
    beyond the tensors' ends. `names` are the parameters', for the message.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    members = [group["params"] for group in state["param_groups"]]
    if members != [group["params"] for group in groups] or not state["state"].keys() <= set(range(len(parameters))):
        raise ValueError(f"the optimizer state is not of {len(parameters)} parameters in these groups")
    for index, moments in state["state"].items():
        problem = _problem(parameters[index], moments)
        if problem:
            raise ValueError(f"the optimizer state of {names[parameters[index]]} {problem}")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _problem(parameter: torch.Tensor, moments: Mapping[str, Any]) -> str | None:
    if moments.keys() != {"step", "exp_avg", "exp_avg_sq"} or not all(map(torch.is_tensor, moments.values())):
        return "does not have the tensors step, exp_avg and exp_avg_sq"
    for name, moment in moments.items():
        shape = () if name == "step" else parameter.shape
        dtype = torch.float32 if name == "step" else parameter.dtype
        if moment.shape != shape or moment.dtype != dtype:
            return f"has a {name} of {moment.dtype}{list(moment.shape)} and not {dtype}{list(shape)}"
        if not moment.isfinite().all() or (name != "exp_avg" and (moment < 0).any()):
            return f"has a {name} that is negative or not finite"
    return None


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total_steps`. Warm-up counts the step itself: none has rate 0."""
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    remaining = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining[config.schedule])


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:  # []
    """Scales gradients so that their global norm is at most `max_norm`; returns the norm they had."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
