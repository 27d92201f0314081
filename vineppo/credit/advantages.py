"""Advantages by comparison within a group, in plain Python: a report shows them without loading anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev, stdev
from typing import Literal

STD_EPS = 1e-4
"""GRPO's default: added to the standard deviation."""


def group_advantages(
    rewards: Sequence[float],
    *,
    divide_by_std: bool = True,
    std: Literal["population", "sample"] = "population",
    std_eps: float = STD_EPS,
) -> list[float]:  # [G]
    """(r - mean) / (std + eps), of rewards that are not all equal."""
    mean, deviation = fmean(rewards), pstdev if std == "population" else stdev
    scale = deviation(rewards) + std_eps if divide_by_std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:  # [G]
    """r_i - mean of the others; 0 for a response that has none."""
    others = max(1, len(rewards) - 1)
    total = math.fsum(rewards)
    return [reward - (total - reward) / others if len(rewards) > 1 else 0.0 for reward in rewards]
