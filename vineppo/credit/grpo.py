"""GRPO: a response's advantage is its reward against those of its siblings, the same for all its tokens.

Shao et al. 2024, "DeepSeekMath", section 4.1.2. Without the division by the standard deviation, which weighs easy and
hard prompts more than the others, it is Dr. GRPO's (Liu et al. 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev, stdev
from typing import Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.credit.siblings import Siblings


class GRPOConfig(Named):
    name: str = "grpo"
    divide_by_std: bool = True
    """false: Dr. GRPO; to follow it in full, also learner.loss_aggregation = "constant"."""
    std: Literal["population", "sample"] = "population"
    """sample: with G - 1 in place of G, as most other programs have it; advantages are smaller by sqrt((G - 1) / G)."""
    std_eps: float = Field(default=1e-4, gt=0)
    """Added to the standard deviation."""


class GRPO(Siblings):
    Config = GRPOConfig

    def advantages(self, rewards: Sequence[float]) -> list[float]:  # [G]
        """(r - mean) / (std + eps)."""
        mean, config = fmean(rewards), self.config
        deviation = pstdev if config.std == "population" else stdev
        scale = deviation(rewards) + config.std_eps if config.divide_by_std else 1.0
        return [(reward - mean) / scale for reward in rewards]
