"""Variance of the policy gradient by credit estimator, on common rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vineppo.analysis.credits import credit_all
from vineppo.analysis.measured import AnalysisConfig, draw_groups
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, Subject, last_checkpoints, open_subject
from vineppo.batch import collate, microbatches, num_tokens
from vineppo.intervals import NUM_RESAMPLES, finite
from vineppo.machine.tables import Row
from vineppo.methods.samples import to_samples
from vineppo.models.logprobs import reading_dtype, token_logprobs
from vineppo.report.charts import bars
from vineppo.sample import Sample
from vineppo.types import UserError

SLICE = 1 << 20

TITLE = "Variance of the policy gradient"
TEXT = (
    "The problems are dealt to disjoint minibatches; each gives a gradient of the mean over tokens of advantage times "
    "log-prob, at the policy that sampled the rollouts, so no ratio and no clipping; advantages are not whitened, "
    "which would divide all by one number. normalized_variance is the trace of the gradients' covariance over the "
    "squared length of their expectation, both without bias: the noise of one minibatch in units of signal. Where the "
    "signal's interval reaches 0 it is empty, and without an upper end. cosine is the mean cosine between gradients "
    "of two minibatches. Intervals: 95 %, bootstrap over minibatches (pairs of a minibatch with itself left out)."
)


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    rows: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            rows += variance_rows(subject, config)
    chart = plot(
        bars,
        "Mean cosine between minibatch gradients, last checkpoints",
        [row for row in last_checkpoints(rows, checkpoints) if row["measure"] == "cosine"],
        by=("estimator", "method"),
        x="estimator",
        y="estimate",
        called="cosine",
        colour_by="method",
    )
    return Result("gradient_variance", TITLE, TEXT, {"gradient": rows}, {"cosine": chart})


def variance_rows(subject: Subject, config: AnalysisConfig) -> list[Row]:
    groups = draw_groups(subject, config)
    size, rest = divmod(len(groups), config.num_minibatches)
    if rest or not size:
        raise UserError(
            f"gradient_variance: {len(groups)} problems cannot be dealt to num_minibatches = {config.num_minibatches}; "
            "choose num_problems as a multiple of it, within what the split has"
        )
    rows = []
    for name, credited in credit_all(subject, groups, config).items():
        gradients = [
            gradient(subject, to_samples(groups[i : i + size], credited.credits[i : i + size]))
            for i in range(0, len(groups), size)
        ]
        products_MM = inner_products(gradients)
        rows += [
            {
                **subject.checkpoint.header,
                "estimator": name,
                "tokens_per_rollout": credited.num_tokens,
                "measure": measure,
                **found,
            }
            for measure, found in moments(products_MM, seed=config.seed).items()
        ]
    return rows


def gradient(subject: Subject, samples: Sequence[Sample]) -> np.ndarray:  # [D] fp32
    """Of the mean over tokens of A_t log pi(y_t | s_t) at the sampling temperature."""
    model: Any = subject.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    num_actions = sum(sample.num_actions for sample in samples)
    model.zero_grad(set_to_none=True)
    for indices in microbatches(list(map(num_tokens, samples)), subject.recipe.learner.microbatch_tokens):
        chosen = [samples[i] for i in indices]
        batch = collate(chosen, columns=("advantages",), dtype=reading_dtype(model), device=parameters[0].device)
        logprobs_N = token_logprobs(model, batch, temperature=subject.recipe.sampling.temperature)
        ((logprobs_N * batch.columns["advantages"]).sum() / num_actions).backward()
    flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in parameters]
    return torch.cat(flat).cpu().numpy()


def inner_products(gradients: Sequence[np.ndarray]) -> np.ndarray:  # [M, M]
    """In float64, a slice of parameters at a time, as a copy of all of them would be twice as large again."""
    total = np.zeros((len(gradients), len(gradients)))
    for start in range(0, len(gradients[0]), SLICE):
        part = np.stack([of_one[start : start + SLICE] for of_one in gradients]).astype(np.float64)
        total += part @ part.T
    return total


def moments(products_MM: np.ndarray, *, seed: int) -> dict[str, dict[str, float | None]]:
    """From the inner products of M independent gradients.

    Two different ones multiply to the squared expectation on average, one with itself to that plus the trace of the
    covariance.
    """
    num = len(products_MM)
    rng = np.random.default_rng(seed)
    resampled = [statistics(products_MM, rng.integers(num, size=num)) for _ in range(NUM_RESAMPLES)]
    found = {}
    for name, value in statistics(products_MM, np.arange(num)).items():
        column = np.array([of[name] for of in resampled])
        low, high = np.percentile(column, [2.5, 97.5], method="nearest")  # some may be infinite
        found[name] = {"estimate": finite(value), "low": finite(low), "high": finite(high)}
    if found["squared_mean"]["low"] is None or found["squared_mean"]["low"] <= 0:
        found["normalized_variance"]["estimate"] = None
    return found


def statistics(products_MM: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    drawn = products_MM[np.ix_(chosen, chosen)]
    different = chosen[:, None] != chosen[None, :]
    lengths = np.sqrt(np.diag(drawn))
    signal = drawn[different].mean() if different.any() else np.nan
    noise = np.diag(drawn).mean() - signal
    scale = np.outer(lengths, lengths)
    usable = different & (scale > 0)
    return {
        "squared_mean": float(signal),
        "covariance_trace": float(noise),
        "normalized_variance": float(noise / signal) if signal > 0 else float("inf"),
        "cosine": float((drawn[usable] / scale[usable]).mean()) if usable.any() else 0.0,
    }
