"""GRPO: a response's advantage is its reward against those of its siblings, the same for all its tokens.

Shao et al. 2024, "DeepSeekMath", section 4.1.2. Without the division by the standard deviation, which weighs easy and
hard prompts more than the others, it is Dr. GRPO's (Liu et al. 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal

from pydantic import Field

from vineppo.config import Config
from vineppo.credit.parts import Parts
from vineppo.credit.spread import group_credits, group_metrics
from vineppo.credit.stateless import Stateless
from vineppo.types import Credit, Group


class GRPOConfig(Config):
    name: Literal["grpo"] = "grpo"
    divide_by_std: bool = True
    """false: Dr. GRPO; to follow it in full, also learner.loss_aggregation = "constant"."""
    std_eps: float = Field(default=1e-4, gt=0)
    """Added to the standard deviation."""


class GRPO(Stateless):
    Config = GRPOConfig

    def __init__(self, config: GRPOConfig):
        self.config = config
        self._metrics: dict[str, float] = {}

    @classmethod
    def make(cls, config: GRPOConfig, parts: Parts) -> GRPO:
        return cls(config)

    def assign(self, groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:  # [P][G]
        credits = group_credits(groups, self.advantages)
        self._metrics = group_metrics(credits)
        return credits

    def advantages(self, rewards: Sequence[float]) -> list[float]:  # [G]
        """(r - mean) / (std + eps), with the standard deviation of the group itself (no Bessel correction)."""
        mean = fmean(rewards)
        scale = pstdev(rewards) + self.config.std_eps if self.config.divide_by_std else 1.0
        return [(reward - mean) / scale for reward in rewards]

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)
