"""The learner in one process: scores samples, takes optimizer steps, and takes none that would spoil the policy.

Every loss divides by counts of the whole minibatch, so one batch of 8 and 8 microbatches of 1 have the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from vineppo.batch import Batch, by_response, collate, microbatches, num_tokens, present_columns
from vineppo.engine.sampler import nucleus_floor
from vineppo.learner.config import LearnerConfig
from vineppo.learner.objective import Counts, Loss, LossFunction
from vineppo.learner.optimizer_step import STATE_FILE, OptimizerStep
from vineppo.models.logprobs import Readings, read_tokens, reading_dtype
from vineppo.sample import Minibatch, Sample
from vineppo.types import SamplingParams

LARGEST_EXPONENT = 700.0
"""Beyond it Python's exp has no finite result."""


class PolicyLearner:
    """`sampling` says how rollouts were sampled: its temperature divides the logits everywhere, so that the trained
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
        self.optimizer_step = OptimizerStep(config, model, total_steps=total_steps, name="learner")

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the log-probs that this policy, and the reference, give their responses, and the mass kept.

        From the training forward, never from the engine: the first ratio of an iteration is 1 to rounding.
        """
        scored = list(samples)
        for indices in microbatches(list(map(num_tokens, samples)), self.config.microbatch_tokens):
            chosen = [samples[i] for i in indices]
            batch = self._collate(chosen)
            policy = self._read(self.model, batch, nucleus=True)
            refs: Sequence[Any] = [None] * len(chosen)
            if self.reference is not None:
                refs = by_response(chosen, self._read(self.reference, batch).logprobs_N)
            olds, masses = by_response(chosen, policy.logprobs_N), by_response(chosen, policy.nucleus_logmass_N)
            for i, old, ref, mass in zip(indices, olds, refs, masses, strict=True):
                scored[i] = replace(samples[i], old_logprobs=old, ref_logprobs=ref, nucleus_logmass=mass)
        return scored

    def step(self, minibatch: Minibatch, loss: LossFunction, *, counts: Counts | None = None) -> dict[str, float]:
        """One optimizer step on `loss`, summed over microbatches.

        `counts` are the minibatch's own unless it is a worker's share of a larger one.
        """
        rows = [row if isinstance(row, tuple) else (row,) for row in minibatch]
        of_minibatch = counts or Counts.of(rows)

        def loss_of(microbatch: list[tuple[Sample, ...]]) -> Loss:
            samples = [sample for place in zip(*microbatch, strict=True) for sample in place]
            batch = self._collate(samples, columns=present_columns(samples))
            readings = self._read(self.model, batch, entropy=self.config.entropy_coef > 0)
            return loss(batch, readings, self.config, of_minibatch)

        padded = [len(row) * max(map(num_tokens, row)) for row in rows]
        return self.optimizer_step.take(rows, padded, loss_of).metrics("optim")

    def mismatch(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the engine's log-probs are from the training forward's, and what top_p and top_k keep.

        Over scored samples. The engine reports the full softmax, so under `renormalize_nucleus` the logarithm of the
        kept mass is taken off the difference.
        """
        masses = [mass for sample in samples for mass in sample.at_actions(sample.nucleus_logmass or ())]
        olds = [old for sample in samples for old in sample.at_actions(sample.old_logprobs or ())]
        sampled = [logprob for sample in samples for logprob in sample.at_actions(sample.sampling_logprobs)]
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
            columns = (sample.at_actions(column or ()) for column in (sample.ref_logprobs, sample.old_logprobs))
            d_N = [ref - old for ref, old in zip(*columns, strict=True)]
            kls.append(math.fsum(math.expm1(min(d, LARGEST_EXPONENT)) - d for d in d_N))
        return {"eval/kl_reference": fmean(kls)}

    def memory(self) -> dict[str, float]:
        reference = sum(p.nbytes for p in self.reference.parameters()) if self.reference is not None else 0
        return self.optimizer_step.memory("policy") | {"memory/reference_parameters_mb": reference / 2**20}

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.model.state_dict()

    def save(self, folder: Path) -> None:
        """Everything but the weights that the next step depends on."""
        self.optimizer_step.save(folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Raises UserError where the folder holds another model's optimizer, and changes nothing then."""
        self.optimizer_step.load(folder / STATE_FILE)

    def _collate(self, samples: Sequence[Sample], columns: Sequence[str] = ()) -> Batch:
        dtype = reading_dtype(self.model)
        return collate(samples, columns=columns, dtype=dtype, device=self.optimizer_step.device)

    def _read(self, model: Any, batch: Batch, *, entropy: bool = False, nucleus: bool = False) -> Readings:
        """Within the nucleus under `renormalize_nucleus`; its mass is read there, and where asked for."""
        renormalize = self.config.renormalize_nucleus
        cut = self.cuts_support and (nucleus or renormalize)
        with self.optimizer_step.autocast():
            readings = read_tokens(
                model,
                batch,
                temperature=self.sampling.temperature,
                entropy=entropy,
                nucleus_floor=partial(nucleus_floor, params=self.sampling) if cut else None,
            )
        if not renormalize:
            return readings
        return readings._replace(logprobs_N=readings.logprobs_N - readings.nucleus_logmass_N)
