"""The learner: scores samples, takes optimizer steps, and takes none that would spoil the policy.

Every loss divides by counts of the whole minibatch, so one batch of 8 and 8 microbatches of 1 have the same gradients.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from vineppo.batch import by_response, collate, microbatches, num_tokens
from vineppo.engine.sampler import nucleus_floor
from vineppo.learner.config import LearnerConfig
from vineppo.learner.losses import MAX_LOG_RATIO, clipped_policy_loss, dpo_loss, kl_to_reference, ratio_of
from vineppo.learner.optimizer_step import Stepper
from vineppo.models.logprobs import read_tokens
from vineppo.types import Sample, SamplingParams

LARGEST_EXPONENT = 700.0
"""Beyond it Python's exp has no finite result."""


class PolicyLearner:
    """`sampling` says how rollouts were drawn: its temperature divides the logits everywhere, so that the trained
    policy is the sampled one."""

    def __init__(
        self,
        config: LearnerConfig,
        model: Any,
        reference: Any | None,
        *,
        sampling: SamplingParams,
        total_steps: int,
    ):
        self.config = config
        self.model = model
        self.reference = reference
        self.sampling = sampling
        self.cuts_support = sampling.top_p < 1 or sampling.top_k > 0
        self.stepper = Stepper(config, model, total_steps=total_steps, name="learner")

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the log-probs that this policy, and the reference, give their responses, and the mass kept.

        From the training forward, never from the engine: the first ratio of an iteration is 1 to rounding.
        """
        scored = list(samples)
        for indices in microbatches(list(map(num_tokens, samples)), self.config.microbatch_tokens):
            chosen = [samples[i] for i in indices]
            read_N3 = self._read(self.model, chosen, mass=self.cuts_support)
            old = by_response(chosen, self._logprobs(read_N3))
            masses = by_response(chosen, read_N3[:, 2])
            refs = (
                by_response(chosen, self._forward(self.reference, chosen)[0])
                if self.reference is not None
                else [None] * len(chosen)
            )
            for i, *columns in zip(indices, old, refs, masses, strict=True):
                names = ("old_logprobs", "ref_logprobs", "kept_logmass")
                scored[i] = replace(samples[i], **dict(zip(names, columns, strict=True)))
        return scored

    def step(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step on the clipped surrogate (by default the mean over tokens), less the entropy bonus, plus
        KL (sum over tokens, mean over rollouts).

        The two normalisations are those of the paper's code, whose coefficient 1e-4 means that sum.
        """
        config = self.config
        total_tokens = sum(len(sample.response_ids) for sample in minibatch)
        sums: defaultdict[str, float] = defaultdict(float)
        largest = {"ratio": 0.0, "importance": 0.0}

        def loss_of(microbatch: list[Sample]) -> torch.Tensor:
            logprobs_N, entropies_N = self._forward(self.model, microbatch, entropy=config.entropy_coef > 0)
            column = partial(self._column, microbatch, dtype=logprobs_N.dtype)
            old_N, weights_N = column("old_logprobs"), self._weights(microbatch, minibatch).to(logprobs_N.dtype)
            losses_N, ratios_N, clipped_N = clipped_policy_loss(
                logprobs_N,
                old_N,
                column("advantages"),
                clip_eps_low=config.clip_eps_low,
                clip_eps_high=config.clip_eps_high,
            )
            if config.max_importance is not None:
                importance_N = ratio_of(old_N - column("sampling_logprobs"))
                if config.renormalize_nucleus:  # the engine's are of the full softmax
                    importance_N = importance_N * torch.exp(column("kept_logmass"))
                losses_N = losses_N * importance_N.clamp(max=config.max_importance)
                largest["importance"] = max(largest["importance"], importance_N.max().item())
            loss = (weights_N * (losses_N - config.entropy_coef * entropies_N)).sum()
            if self.reference is not None:
                ref_N = column("ref_logprobs")
                kl_N = kl_to_reference(
                    logprobs_N,
                    ref_N,
                    estimator=config.kl_estimator,
                    clamp=config.kl_clamp,
                    ratios_N=ratios_N if config.kl_ratio_correction else None,
                )
                loss = loss + config.kl_coef * kl_N.sum() / len(minibatch)
                sums["ref_kl"] += kl_N.detach().sum().item()
            log_ratios_N = (logprobs_N - old_N).detach().clamp(max=MAX_LOG_RATIO)
            sums["ratio"] += ratios_N.detach().sum().item()
            sums["clipped"] += clipped_N.sum().item()
            sums["old_kl"] += (torch.expm1(log_ratios_N) - log_ratios_N).sum().item()
            sums["logprob"] += logprobs_N.detach().sum().item()
            sums["entropy"] += entropies_N.detach().sum().item()
            largest["ratio"] = max(largest["ratio"], ratios_N.detach().max().item())
            return loss

        def veto() -> str | None:
            mean_ratio = sums["ratio"] / total_tokens
            if mean_ratio > config.max_mean_ratio:
                return f"the mean ratio {mean_ratio:.3g} is above {config.max_mean_ratio:g}"
            return None

        step = self.stepper.step(minibatch, list(map(num_tokens, minibatch)), loss_of, veto)
        metrics = {
            "policy/loss": step.loss,
            "policy/clip_frac": sums["clipped"] / total_tokens,
            "policy/ratio_mean": sums["ratio"] / total_tokens,
            "policy/ratio_max": largest["ratio"],
            "policy/approx_kl": sums["old_kl"] / total_tokens,
            "policy/nll": -sums["logprob"] / total_tokens,
            "kl/reference": sums["ref_kl"] / len(minibatch),
        }
        if config.entropy_coef > 0:
            metrics["policy/entropy"] = sums["entropy"] / total_tokens
        if config.max_importance is not None:
            metrics["policy/importance_max"] = largest["importance"]
        return metrics | step.metrics("optim")

    def step_nll(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step of maximum likelihood on the responses; by default the mean over tokens."""

        def loss_of(microbatch: list[Sample]) -> torch.Tensor:
            logprobs_N, _ = self._forward(self.model, microbatch)
            return -(self._weights(microbatch, minibatch).to(logprobs_N.dtype) * logprobs_N).sum()

        step = self.stepper.step(minibatch, list(map(num_tokens, minibatch)), loss_of)
        return {"sft/nll": step.loss} | step.metrics("optim")

    def step_dpo(
        self, minibatch: Sequence[Any], *, beta: float, positive_lambda: float, label_smoothing: float
    ) -> dict[str, float]:
        """One optimizer step of DPO-positive, mean over pairs. Responses count by the sum of their log-probs."""
        sums: defaultdict[str, float] = defaultdict(float)

        def loss_of(microbatch: list[Any]) -> torch.Tensor:
            chosen = [pair.chosen for pair in microbatch]
            rejected = [pair.rejected for pair in microbatch]
            logprobs_N, _ = self._forward(self.model, chosen + rejected)
            lengths = [len(sample.response_ids) for sample in chosen + rejected]
            totals = torch.stack([part.sum() for part in logprobs_N.split(lengths)])
            refs = totals.new_tensor([sum(sample.ref_logprobs or ()) for sample in chosen + rejected])
            losses_P, margins_P = dpo_loss(
                *totals.chunk(2),
                *refs.chunk(2),
                beta=beta,
                positive_lambda=positive_lambda,
                label_smoothing=label_smoothing,
            )
            chosen_P, rejected_P = (totals - refs).detach().chunk(2)
            sums["margin"] += margins_P.detach().sum().item()
            sums["ordered"] += (margins_P > 0).sum().item()
            sums["chosen"] += chosen_P.sum().item()
            sums["rejected"] += rejected_P.sum().item()
            return losses_P.sum() / len(minibatch)

        lengths = [2 * max(num_tokens(pair.chosen), num_tokens(pair.rejected)) for pair in minibatch]
        step = self.stepper.step(minibatch, lengths, loss_of)
        return {
            "dpo/loss": step.loss,
            "dpo/margin": sums["margin"] / len(minibatch),
            "dpo/ordered_frac": sums["ordered"] / len(minibatch),
            "dpo/chosen_gain": sums["chosen"] / len(minibatch),
            "dpo/rejected_gain": sums["rejected"] / len(minibatch),
        } | step.metrics("optim")

    def mismatch(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the engine's log-probs are from the training forward's, and what top_p and top_k keep.

        Over scored samples. The engine reports the full softmax, so under `renormalize_nucleus` the logarithm of the
        kept mass is taken off the difference.
        """
        masses = [mass for sample in samples for mass in sample.kept_logmass or ()]
        olds = [old for sample in samples for old in sample.old_logprobs or ()]
        sampled = [logprob for sample in samples for logprob in sample.sampling_logprobs]
        taken_off = masses if self.config.renormalize_nucleus else [0.0] * len(masses)
        differences = [abs(s - off - old) for s, off, old in zip(sampled, taken_off, olds, strict=True)]
        return {
            "policy/engine_logprob_diff_mean": fmean(differences),
            "policy/engine_logprob_diff_max": max(differences),
            "policy/kept_mass_mean": fmean(map(math.exp, masses)),
        }

    def divergence(self, samples: Sequence[Sample]) -> dict[str, float]:
        """KL to the reference on these responses: k3, not clamped, summed over a response, mean over responses.

        An estimate of the KL where they were sampled from this policy as it trains; without a reference, nothing.
        """
        if self.reference is None:
            return {}
        kls = []
        for sample in self.score(samples):
            d_N = [ref - old for ref, old in zip(sample.ref_logprobs or (), sample.old_logprobs or (), strict=True)]
            kls.append(math.fsum(math.expm1(min(d, LARGEST_EXPONENT)) - d for d in d_N))
        return {"eval/kl_reference": fmean(kls)}

    def memory(self) -> dict[str, float]:
        reference = sum(p.nbytes for p in self.reference.parameters()) if self.reference is not None else 0
        return self.stepper.memory("policy") | {"memory/reference_parameters_mb": reference / 2**20}

    def state_dict(self) -> Mapping[str, Any]:
        return self.model.state_dict()

    def trainer_state(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on."""
        return self.stepper.state_dict()

    def load_trainer_state(self, state: Mapping[str, Any]) -> None:
        self.stepper.load_state_dict(state)

    def _forward(
        self, model: Any, samples: Sequence[Sample], *, entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of the responses, flattened to [N]."""
        renormalized = self.config.renormalize_nucleus and self.cuts_support
        read_N3 = self._read(model, samples, entropy=entropy, mass=renormalized)
        return self._logprobs(read_N3), read_N3[:, 1]

    def _logprobs(self, read_N3: torch.Tensor) -> torch.Tensor:
        return read_N3[:, 0] - read_N3[:, 2] if self.config.renormalize_nucleus else read_N3[:, 0]

    def _read(
        self, model: Any, samples: Sequence[Sample], *, entropy: bool = False, mass: bool = False
    ) -> torch.Tensor:
        with self.stepper.autocast():
            return read_tokens(
                model,
                collate(samples, device=self.stepper.device),
                temperature=self.sampling.temperature,
                entropy=entropy,
                nucleus_floor=partial(nucleus_floor, params=self.sampling) if mass else None,
            )

    def _column(self, samples: Sequence[Sample], name: str, *, dtype: torch.dtype) -> torch.Tensor:
        flat = [number for sample in samples for number in getattr(sample, name)]
        return torch.tensor(flat, dtype=dtype, device=self.stepper.device)

    def _weights(self, microbatch: Sequence[Sample], minibatch: Sequence[Sample]) -> torch.Tensor:
        """How much each token of the microbatch counts in the minibatch's loss, [N]."""
        config = self.config
        total_tokens = sum(len(sample.response_ids) for sample in minibatch)
        lengths = [len(sample.response_ids) for sample in microbatch]
        if config.loss_aggregation == "token":
            weights = [1 / total_tokens] * len(microbatch)
        elif config.loss_aggregation == "sequence":
            weights = [1 / (len(minibatch) * length) for length in lengths]
        else:
            assert config.loss_length is not None
            weights = [1 / (len(minibatch) * config.loss_length)] * len(microbatch)
        flat = [weight for weight, length in zip(weights, lengths, strict=True) for _ in range(length)]
        return torch.tensor(flat, dtype=torch.float64, device=self.stepper.device)
