"""What a run offers its credit estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vineppo.environment import Environment


@dataclass(frozen=True)
class Parts:
    environment: Environment
    load_policy: Callable[[], Any]
    """A copy of the model that training started from."""
    total_steps: int
    """Optimizer steps of the whole run, for schedules."""
    seed: int
