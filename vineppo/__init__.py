"""VinePPO: reinforcement learning of reasoning with measured, not learned, credit assignment (arXiv 2410.01679).

What a notebook needs is here: `from vineppo import load_recipe, run_recipe`. Each name is imported when it is first
asked for, so that `import vineppo` loads no torch. README.md has an example, docs/tour.md the way through the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vineppo.machine.threads import spin_briefly

if TYPE_CHECKING:
    from vineppo.credit.common import CreditContext
    from vineppo.credit.vineppo import VinePPO, VinePPOConfig
    from vineppo.methods import load_recipe
    from vineppo.methods.run import run_recipe
    from vineppo.rollouts import sample_groups
    from vineppo.runs.setup import set_up
    from vineppo.types import UserError

__version__ = "0.1.0"
__all__ = [
    "CreditContext",
    "UserError",
    "VinePPO",
    "VinePPOConfig",
    "load_recipe",
    "run_recipe",
    "sample_groups",
    "set_up",
]
HOMES = {
    "load_recipe": "vineppo.methods",
    "run_recipe": "vineppo.methods.run",
    "set_up": "vineppo.runs.setup",
    "sample_groups": "vineppo.rollouts",
    "VinePPO": "vineppo.credit.vineppo",
    "VinePPOConfig": "vineppo.credit.vineppo",
    "CreditContext": "vineppo.credit.common",
    "UserError": "vineppo.types",
}
"""The module of each name."""

spin_briefly()  # before anything here imports torch


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'vineppo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(HOMES[name]), name)
