"""RLOO: a response's advantage is its reward less the mean reward of the others, the same for all its tokens.

Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics", section 3.3. The baseline does not depend on the response it
is subtracted from, so the policy gradient stays unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vineppo.config import Named
from vineppo.credit.siblings import Siblings


class RLOOConfig(Named):
    name: str = "rloo"


class RLOO(Siblings):
    Config = RLOOConfig

    def advantages(self, rewards: Sequence[float]) -> list[float]:  # [G]
        return leave_one_out(rewards)


def leave_one_out(rewards: Sequence[float]) -> list[float]:  # [G]
    """r_i - mean of the others; 0 for a response that has none."""
    others = max(1, len(rewards) - 1)
    total = math.fsum(rewards)
    return [reward - (total - reward) / others if len(rewards) > 1 else 0.0 for reward in rewards]
