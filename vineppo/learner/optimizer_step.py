"""A model and its optimizer: gradients are accumulated over microbatches, clipped, and left out where they would spoil.

Policy and critic each have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from vineppo.batch import microbatches
from vineppo.learner.config import OptimizerStepConfig
from vineppo.learner.objective import Loss, Max, Sum
from vineppo.learner.optim import clip_gradients, learning_rate, load_moments, make_optimizer
from vineppo.machine import runtime
from vineppo.machine.saved_state import restoring
from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.types import UserError

T = TypeVar("T")

STATE_FILE = "trainer.pt"


@dataclass(frozen=True)
class StepResult:
    """What came of one optimizer step."""

    loss_metrics: dict[str, float]
    grad_norm: float  # before clipping
    lr: float
    skipped: bool

    def metrics(self, area: str) -> dict[str, float]:
        return self.loss_metrics | {
            f"{area}/grad_norm": self.grad_norm,
            f"{area}/lr": self.lr,
            f"{area}/num_steps": 1.0 - self.skipped,
            f"{area}/num_skipped_steps": float(self.skipped),
        }


class OptimizerStep:
    def __init__(self, config: OptimizerStepConfig, model: Any, *, total_steps: int, name: str):
        self.config = config
        self.model = model
        self.total_steps = total_steps
        self.name = name  # the recipe's section, for messages
        self.device = next(model.parameters()).device
        self.dtype = runtime.pick_dtype(config.precision, self.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(config.optim, self.parameters)
        self.num_steps = 0  # taken
        self.num_skipped_in_a_row = 0
        self.gradient_bytes = 0
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def take(self, rows: Sequence[T], lengths: Sequence[int], loss_of: Callable[[list[T]], Loss]) -> StepResult:
        """One optimizer step on the sum of `loss_of` over microbatches of `rows`, which have `lengths` in tokens.

        None is taken where the loss or the gradient is not finite, or a metric exceeds its limit: then weights, moments
        and schedule stay as they are. Raises UserError after `max_skipped_steps` such in a row.
        Train mode only where gradient checkpointing asks for it; there is no dropout either way.
        """
        totals = Totals()
        self.model.train(self.config.gradient_checkpointing)
        self.optimizer.zero_grad(set_to_none=True)
        for indices in microbatches(lengths, self.config.microbatch_tokens):
            loss = loss_of([rows[i] for i in indices])
            loss.value.backward()
            totals.add(loss)
        self.model.eval()
        norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        self.gradient_bytes = sum(p.grad.nbytes for p in self.parameters if p.grad is not None)
        total_loss, grad_norm, metrics = totals.read(norm)
        reason = reason_to_skip(total_loss, grad_norm, metrics, totals.limits)
        lr = learning_rate(self.config.optim, self.num_steps, self.total_steps)
        if reason is None:
            self._apply(lr)
        else:
            self._skip(reason)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(metrics, grad_norm, lr, skipped=reason is not None)

    def _apply(self, lr: float) -> None:
        self.num_skipped_in_a_row = 0
        self.num_steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def _skip(self, reason: str) -> None:
        self.num_skipped_in_a_row += 1
        if self.num_skipped_in_a_row >= self.config.max_skipped_steps:
            raise UserError(
                f"{self.num_skipped_in_a_row} optimizer steps in a row were skipped after {self.num_steps} that were "
                f"taken, the last because {reason}; "
                f"lower {self.name}.optim.lr, or continue from an earlier checkpoint"
            )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def memory(self, area: str) -> dict[str, float]:
        """MiB held by parameters, gradients (while a step is taken) and optimizer."""
        moments = (t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))
        sizes = {
            "parameters": sum(parameter.nbytes for parameter in self.model.parameters()),
            "gradients": self.gradient_bytes,
            "optimizer": sum(moment.nbytes for moment in moments),
        }
        return {f"memory/{area}_{what}_mb": size / 2**20 for what, size in sizes.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "num_steps": self.num_steps,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
        }

    def save(self, path: Path) -> None:
        save_tensors({"learner": self.state_dict()}, path)

    def load(self, path: Path) -> None:
        """Raises UserError where it is not the state of such a model's optimizer, and changes nothing then."""
        state = load_tensors(path)
        with restoring(path, "the optimizer state of this run"):
            self.load_state_dict(state["learner"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where it is not the state of such a model's optimizer, and changes nothing then."""
        counts = {name: state[name] for name in ("num_steps", "num_skipped_in_a_row")}
        for name, count in counts.items():
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} = {count!r} is not a number of steps")
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        load_moments(self.optimizer, names, state["optimizer"])
        self.num_steps, self.num_skipped_in_a_row = counts.values()


class Totals:
    """Losses of microbatches, added up in float64 on their device and read once a step: each reading waits for it."""

    def __init__(self) -> None:
        self.loss: Any = 0.0
        self.metrics: dict[str, Sum | Max] = {}
        self.limits: Mapping[str, float] = {}

    def add(self, loss: Loss) -> None:
        self.loss = self.loss + loss.value.detach().double()
        self.limits = loss.limits
        for name, metric in loss.metrics.items():
            before, value = self.metrics.get(name), metric.value.detach().double()
            if isinstance(metric, Max):
                self.metrics[name] = Max(value if before is None else torch.maximum(before.value, value))
            else:
                self.metrics[name] = Sum(value + (0.0 if before is None else before.value), metric.per)

    def read(self, grad_norm: torch.Tensor) -> tuple[float, float, dict[str, float]]:
        """(loss, gradient norm, metrics)."""
        values = [self.loss, grad_norm.double(), *(metric.value for metric in self.metrics.values())]
        loss, norm, *numbers = torch.stack(values).tolist()
        metrics = {
            name: number / metric.per if isinstance(metric, Sum) else number
            for (name, metric), number in zip(self.metrics.items(), numbers, strict=True)
        }
        return loss, norm, metrics


def reason_to_skip(
    loss: float, grad_norm: float, metrics: Mapping[str, float], limits: Mapping[str, float]
) -> str | None:
    if not math.isfinite(loss):
        return "the loss is not finite"
    if not math.isfinite(grad_norm):
        return "the gradient is not finite"
    above = [name for name, limit in limits.items() if metrics[name] > limit]
    return f"{above[0]} = {metrics[above[0]]:.3g} is above {limits[above[0]]:g}" if above else None
