"""The learner: scores samples, takes optimizer steps, and takes none that would spoil the policy.

Every loss divides by counts of the whole minibatch, so one batch of 8 and 8 microbatches of 1 have the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

import torch
from pydantic import Field

from vineppo import runtime
from vineppo.batch import collate, microbatches
from vineppo.config import Config
from vineppo.losses import KLEstimator, clipped_policy_loss, kl_to_reference
from vineppo.models import token_logprobs
from vineppo.optim import OptimConfig, clip_gradients, learning_rate, make_optimizer
from vineppo.types import Sample, UserError


class LearnerConfig(Config):
    clip_eps: float = Field(default=0.2, gt=0)
    kl_coef: float = Field(default=1e-4, ge=0)
    """Weight of KL(policy || reference) in the loss; 0 loads no reference model."""
    kl_estimator: KLEstimator = "k3"
    kl_clamp: float = Field(default=10.0, gt=0)
    """Largest KL estimate of one token; above it the token pulls no more."""
    microbatch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass: less memory, same gradients."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast over fp32 master weights; auto takes it where the hardware multiplies it fast."""
    gradient_checkpointing: bool = False
    max_mean_ratio: float = Field(default=10.0, gt=1)
    """A minibatch whose mean probability ratio exceeds this is skipped."""
    max_skipped_steps: int = Field(default=5, ge=1)
    """Skipped steps in a row after which the run stops."""
    optim: OptimConfig = OptimConfig()


class PolicyLearner:
    """`temperature` divides the logits everywhere, so that the trained policy is the sampled one."""

    def __init__(
        self,
        config: LearnerConfig,
        model: Any,
        reference: Any | None,
        *,
        temperature: float,
        total_steps: int,
    ):
        self.config = config
        self.model = model
        self.reference = reference
        self.temperature = temperature
        self.total_steps = total_steps
        self.device = next(model.parameters()).device
        self.dtype = runtime.pick_dtype(config.precision, self.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(config.optim, self.parameters)
        self.num_steps = 0  # taken
        self.num_skipped_in_a_row = 0
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the log-probs that this policy, and the reference, give their responses.

        From the training forward, never from the engine: the first ratio of an iteration is 1 to rounding.
        """
        old = self._logprobs(self.model, samples)
        ref = self._logprobs(self.reference, samples) if self.reference is not None else [None] * len(samples)
        return [
            replace(sample, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs)
            for sample, old_logprobs, ref_logprobs in zip(samples, old, ref, strict=True)
        ]

    def step(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step on the clipped surrogate (mean over tokens) plus KL (sum over tokens, mean over rollouts).

        The two normalisations are those of the paper's code, whose coefficient 1e-4 means that sum.
        """
        config = self.config
        num_tokens = sum(len(sample.response_ids) for sample in minibatch)
        sums = {"loss": 0.0, "ratio": 0.0, "clipped": 0.0, "old_kl": 0.0, "ref_kl": 0.0, "logprob": 0.0}
        ratio_max = 0.0

        def loss_of(microbatch: Sequence[Sample], logprobs_N: torch.Tensor) -> torch.Tensor:
            nonlocal ratio_max
            old_N = self._column([sample.old_logprobs for sample in microbatch], logprobs_N.dtype)
            advantages_N = self._column([sample.advantages for sample in microbatch], logprobs_N.dtype)
            losses_N, ratios_N, clipped_N = clipped_policy_loss(
                logprobs_N, old_N, advantages_N, clip_eps=config.clip_eps
            )
            loss = losses_N.sum() / num_tokens
            if self.reference is not None:
                ref_N = self._column([sample.ref_logprobs for sample in microbatch], logprobs_N.dtype)
                kl_N = kl_to_reference(logprobs_N, ref_N, estimator=config.kl_estimator, clamp=config.kl_clamp)
                loss = loss + config.kl_coef * kl_N.sum() / len(minibatch)
                sums["ref_kl"] += kl_N.detach().sum().item()
            log_ratios_N = (logprobs_N - old_N).detach()
            sums["loss"] += loss.item()
            sums["ratio"] += ratios_N.detach().sum().item()
            sums["clipped"] += clipped_N.sum().item()
            sums["old_kl"] += (torch.expm1(log_ratios_N) - log_ratios_N).sum().item()
            sums["logprob"] += logprobs_N.detach().sum().item()
            ratio_max = max(ratio_max, ratios_N.detach().max().item())
            return loss

        grad_norm = self._backward(minibatch, loss_of)
        mean_ratio = sums["ratio"] / num_tokens
        metrics = self._step_unless(
            {
                "the loss is not finite": not math.isfinite(sums["loss"]),
                "the gradient is not finite": not math.isfinite(grad_norm),
                f"the mean ratio {mean_ratio:.3g} is above {config.max_mean_ratio:g}": mean_ratio
                > config.max_mean_ratio,
            }
        )
        return metrics | {
            "policy/loss": sums["loss"],
            "policy/clip_frac": sums["clipped"] / num_tokens,
            "policy/ratio_mean": mean_ratio,
            "policy/ratio_max": ratio_max,
            "policy/approx_kl": sums["old_kl"] / num_tokens,
            "policy/nll": -sums["logprob"] / num_tokens,
            "kl/reference": sums["ref_kl"] / len(minibatch),
            "optim/grad_norm": grad_norm,
        }

    def step_nll(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step of maximum likelihood on the responses, mean over tokens."""
        num_tokens = sum(len(sample.response_ids) for sample in minibatch)
        total = 0.0

        def loss_of(microbatch: Sequence[Sample], logprobs_N: torch.Tensor) -> torch.Tensor:
            nonlocal total
            loss = -logprobs_N.sum() / num_tokens
            total += loss.item()
            return loss

        grad_norm = self._backward(minibatch, loss_of)
        bad = {
            "the loss is not finite": not math.isfinite(total),
            "the gradient is not finite": not math.isfinite(grad_norm),
        }
        return self._step_unless(bad) | {"sft/nll": total, "optim/grad_norm": grad_norm}

    def mismatch(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the engine's log-probs are from the training forward's, over scored samples."""
        differences = [
            abs(sampled - old)
            for sample in samples
            for sampled, old in zip(sample.sampling_logprobs, sample.old_logprobs or (), strict=True)
        ]
        return {
            "policy/engine_logprob_diff_mean": fmean(differences),
            "policy/engine_logprob_diff_max": max(differences),
        }

    def state_dict(self) -> Mapping[str, Any]:
        return self.model.state_dict()

    def trainer_state(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "num_steps": self.num_steps,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
        }

    def load_trainer_state(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]

    def _logprobs(self, model: Any, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        columns: list[tuple[float, ...]] = [()] * len(samples)
        for indices in microbatches(samples, self.config.microbatch_tokens):
            chosen = [samples[i] for i in indices]
            rows = self._forward(model, chosen).split([len(sample.response_ids) for sample in chosen])
            for i, row in zip(indices, rows, strict=True):
                columns[i] = tuple(row.tolist())
        return columns

    def _forward(self, model: Any, samples: Sequence[Sample]) -> torch.Tensor:
        """Log-probs of the responses, flattened to [N]."""
        batch = collate(samples, device=self.device)
        with self._autocast():
            return token_logprobs(
                model,
                batch.input_ids_BT,
                batch.attention_mask_BT,
                batch.target_ids_BT,
                batch.action_mask_BT,
                temperature=self.temperature,
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()

    def _column(self, columns: Sequence[tuple[float, ...] | None], dtype: torch.dtype) -> torch.Tensor:
        flat = [number for column in columns for number in column or ()]
        return torch.tensor(flat, dtype=dtype, device=self.device)

    def _backward(
        self, minibatch: Sequence[Sample], loss_of: Callable[[Sequence[Sample], torch.Tensor], torch.Tensor]
    ) -> float:
        """Accumulates the gradient of the summed microbatch losses, clips it, and returns its norm before that.

        Train mode only where gradient checkpointing asks for it; there is no dropout either way.
        """
        self.model.train(self.config.gradient_checkpointing)
        self.optimizer.zero_grad(set_to_none=True)
        for indices in microbatches(minibatch, self.config.microbatch_tokens):
            chosen = [minibatch[i] for i in indices]
            loss_of(chosen, self._forward(self.model, chosen)).backward()
        self.model.eval()
        return clip_gradients(self.parameters, self.config.optim.max_grad_norm)

    def _step_unless(self, reasons: Mapping[str, bool]) -> dict[str, float]:
        """Steps, unless a reason holds: then weights, optimizer and schedule stay as they are."""
        found = [reason for reason, holds in reasons.items() if holds]
        rate = learning_rate(self.config.optim, self.num_steps, self.total_steps)
        if found:
            self.num_skipped_in_a_row += 1
            if self.num_skipped_in_a_row >= self.config.max_skipped_steps:
                raise UserError(
                    f"{self.num_skipped_in_a_row} optimizer steps in a row were skipped, the last because {found[0]}; "
                    "lower learner.optim.lr, or continue from an earlier checkpoint"
                )
        else:
            self.num_skipped_in_a_row = 0
            self.num_steps += 1
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"policy/num_skipped_steps": float(bool(found)), "optim/lr": rate}
