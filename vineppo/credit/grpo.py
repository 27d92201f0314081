"""GRPO: a response's advantage is its reward against those of its group, the same for all its tokens.

Shao et al. 2024, "DeepSeekMath", section 4.1.2. Without the division by the standard deviation, which weighs easy and
hard prompts more than the others, it is Dr. GRPO's (Liu et al. 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.credit.advantages import STD_EPS, group_advantages
from vineppo.credit.common import CreditContext, assign_by_group
from vineppo.types import Assigned, Group


class GRPOConfig(Named):
    compares_group: ClassVar[bool] = True
    name: str = "grpo"
    divide_by_std: bool = True
    """false: Dr. GRPO; to follow it in full, also learner.loss_aggregation = "constant"."""
    std: Literal["population", "sample"] = "population"
    """sample: with G - 1 in place of G, as most other programs have it; advantages are smaller by sqrt((G - 1) / G)."""
    std_eps: float = Field(default=STD_EPS, gt=0)
    """Added to the standard deviation."""


class GRPO:
    Config = GRPOConfig

    def __init__(self, config: GRPOConfig, context: CreditContext | None = None):
        self.formula = partial(
            group_advantages, divide_by_std=config.divide_by_std, std=config.std, std_eps=config.std_eps
        )

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        return assign_by_group(groups, self.formula)
