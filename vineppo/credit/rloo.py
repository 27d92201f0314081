"""RLOO: a response's advantage is its reward less the mean reward of the others, the same for all its tokens.

Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics", section 3.3. The baseline does not depend on the response it
is subtracted from, so the policy gradient stays unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from vineppo.config import Config
from vineppo.credit.parts import Parts
from vineppo.credit.spread import group_credits, group_metrics
from vineppo.credit.stateless import Stateless
from vineppo.types import Credit, Group


class RLOOConfig(Config):
    name: Literal["rloo"] = "rloo"


class RLOO(Stateless):
    Config = RLOOConfig

    def __init__(self, config: RLOOConfig):
        self.config = config
        self._metrics: dict[str, float] = {}

    @classmethod
    def make(cls, config: RLOOConfig, parts: Parts) -> RLOO:
        return cls(config)

    def assign(self, groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:  # [P][G]
        credits = group_credits(groups, leave_one_out)
        self._metrics = group_metrics(credits)
        return credits

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)


def leave_one_out(rewards: Sequence[float]) -> list[float]:  # [G]
    """r_i - mean of the others; 0 for a response that has none."""
    others = max(1, len(rewards) - 1)
    total = math.fsum(rewards)
    return [reward - (total - reward) / others if len(rewards) > 1 else 0.0 for reward in rewards]
