"""RLOO: a response's advantage is its reward less the mean reward of the others, the same for all its tokens.

Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics", section 3.3. The baseline does not depend on the response it
is subtracted from, so the policy gradient stays unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from vineppo.config import Named
from vineppo.credit.advantages import leave_one_out
from vineppo.credit.common import CreditContext, assign_by_group
from vineppo.types import Assigned, Group


class RLOOConfig(Named):
    compares_group: ClassVar[bool] = True
    name: str = "rloo"


class RLOO:
    Config = RLOOConfig

    def __init__(self, config: RLOOConfig, context: CreditContext | None = None):
        pass

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        return assign_by_group(groups, leave_one_out)
