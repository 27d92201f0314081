"""Advantages as the loss takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vineppo.batch import by_response
from vineppo.learner.losses import whiten
from vineppo.types import Sample


def normalize_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """Whitens over all actions of `samples`: mean 0, unbiased variance 1 (+ 1e-8), as the paper's code does."""
    flat = [a for sample in samples for a in sample.at_actions(sample.advantages)]
    columns = by_response(samples, whiten(torch.tensor(flat, dtype=torch.float64)))
    return [replace(sample, advantages=column) for sample, column in zip(samples, columns, strict=True)]
