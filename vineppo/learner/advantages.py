"""Advantages as the loss takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from vineppo.batch import by_response
from vineppo.learner.losses import WHITEN_EPS, whiten
from vineppo.sample import Sample

ALIKE = 1 / 3
"""Of advantages whose spread is a smaller share of their root mean square: they do not tell tokens apart."""


def normalize_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """Whitens over all actions of `samples`: mean 0, unbiased variance 1 (+ 1e-8), as the paper's code does."""
    flat = [a for sample in samples for a in sample.at_actions(sample.advantages)]
    columns = by_response(samples, whiten(torch.tensor(flat, dtype=torch.float64)))
    return [replace(sample, advantages=column) for sample, column in zip(samples, columns, strict=True)]


def scale_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """Divides all by one number, their root mean square over actions, each as often as it counts.

    No mean is taken off: it would give every token the same push, and tokens of different weights would get it
    differently often, so that the gradient's mean moved. Where advantages are alike they stay as they are: all
    responses earned the same, what a fitted baseline left is small, and scaled to 1 it would push all tokens at once.
    """
    pairs = [pair for sample in samples for pair in zip(*weights_and_advantages(sample), strict=True)]
    total = math.fsum(sample.total_weight for sample in samples)
    mean = math.fsum(weight * advantage for weight, advantage in pairs) / total
    square = math.fsum(weight * advantage**2 for weight, advantage in pairs) / total
    if square - mean**2 < ALIKE**2 * square:
        return list(samples)
    scale = math.sqrt(square + WHITEN_EPS)
    return [replace(sample, advantages=tuple(a / scale for a in sample.advantages)) for sample in samples]


def weights_and_advantages(sample: Sample) -> tuple[Sequence[float], Sequence[float]]:
    """Of its actions."""
    weights = sample.weights or (1.0,) * len(sample.response_ids)
    return sample.at_actions(weights), sample.at_actions(sample.advantages)
