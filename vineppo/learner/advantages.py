"""Advantages as the loss takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from vineppo.batch import by_response
from vineppo.learner.losses import WHITEN_EPS, whiten
from vineppo.types import Sample


def normalize_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """Whitens over all actions of `samples`: mean 0, unbiased variance 1 (+ 1e-8), as the paper's code does."""
    flat = [a for sample in samples for a in sample.at_actions(sample.advantages)]
    columns = by_response(samples, whiten(torch.tensor(flat, dtype=torch.float64)))
    return [replace(sample, advantages=column) for sample, column in zip(samples, columns, strict=True)]


def scale_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """Divides all by one number, their root mean square over actions, each as often as it counts.

    No mean is taken off: it would give every token the same push, and tokens of different weights would get it
    differently often, so that the gradient's mean moved.
    """
    squares = math.fsum(
        weight * advantage**2
        for sample in samples
        for weight, advantage in zip(
            sample.at_actions(sample.weights or (1.0,) * len(sample.response_ids)),
            sample.at_actions(sample.advantages),
            strict=True,
        )
    )
    scale = math.sqrt(squares / math.fsum(sample.total_weight for sample in samples) + WHITEN_EPS)
    return [replace(sample, advantages=tuple(a / scale for a in sample.advantages)) for sample in samples]
