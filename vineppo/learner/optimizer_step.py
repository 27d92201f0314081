"""A model and its optimizer: gradients are accumulated over microbatches, clipped, and left out where they would spoil.

Policy and critic each have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from vineppo.batch import microbatches
from vineppo.learner.config import StepperConfig
from vineppo.learner.optim import clip_gradients, learning_rate, load_moments, make_optimizer
from vineppo.machine import runtime
from vineppo.types import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What came of one optimizer step."""

    loss: float
    grad_norm: float  # before clipping
    lr: float
    skipped: bool

    def metrics(self, area: str) -> dict[str, float]:
        return {
            f"{area}/grad_norm": self.grad_norm,
            f"{area}/lr": self.lr,
            f"{area}/num_steps": 1.0 - self.skipped,
            f"{area}/num_skipped_steps": float(self.skipped),
        }


class Stepper:
    def __init__(self, config: StepperConfig, model: Any, *, total_steps: int, name: str):
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

    def step(
        self,
        minibatch: Sequence[T],
        lengths: Sequence[int],
        loss_of: Callable[[list[T]], torch.Tensor],
        veto: Callable[[], str | None] = lambda: None,
    ) -> Step:
        """One optimizer step on the sum of `loss_of` over microbatches of `minibatch`, whose rows have `lengths`.

        None is taken where the loss or the gradient is not finite, or `veto` names a reason: then weights, moments
        and schedule stay as they are. Raises UserError after `max_skipped_steps` such in a row.
        Train mode only where gradient checkpointing asks for it; there is no dropout either way.
        """
        total = 0.0
        self.model.train(self.config.gradient_checkpointing)
        self.optimizer.zero_grad(set_to_none=True)
        for indices in microbatches(lengths, self.config.microbatch_tokens):
            loss = loss_of([minibatch[i] for i in indices])
            loss.backward()
            total += loss.item()
        self.model.eval()
        grad_norm = clip_gradients(self.parameters, self.config.optim.max_grad_norm)
        self.gradient_bytes = sum(p.grad.nbytes for p in self.parameters if p.grad is not None)
        lr = learning_rate(self.config.optim, self.num_steps, self.total_steps)
        if not math.isfinite(total):
            reason = "the loss is not finite"
        elif not math.isfinite(grad_norm):
            reason = "the gradient is not finite"
        else:
            reason = veto()
        if reason is None:
            self._apply(lr)
        else:
            self._skip(reason)
        self.optimizer.zero_grad(set_to_none=True)
        return Step(total, grad_norm, lr, skipped=reason is not None)

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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError where it is not the state of such a model's optimizer, and changes nothing then."""
        counts = {name: state[name] for name in ("num_steps", "num_skipped_in_a_row")}
        for name, count in counts.items():
            if type(count) is not int or count < 0:
                raise ValueError(f"{name} = {count!r} is not a number of steps")
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        load_moments(self.optimizer, names, state["optimizer"])
        self.num_steps, self.num_skipped_in_a_row = counts.values()
