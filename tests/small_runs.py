"""Runs of a tiny model: their recipes as trees, and all that recipe and seed decide of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny import RECIPE

from vineppo.methods import kind_of
from vineppo.methods.run import run_recipe
from vineppo.runs.recipe import make_recipe

LOOP = RECIPE | {
    "checkpoint": {"keep_last": 3},
    "learner": {"optim": {"lr": 1e-3, "schedule": "constant", "warmup_ratio": 0.0}},
    "evaluation": RECIPE["evaluation"] | {"every": 1},
}
SHORT = LOOP | {"train": LOOP["train"] | {"num_iterations": 2}}
LONG = LOOP | {"train": LOOP["train"] | {"num_iterations": 4}}
OFFLINE = {key: value for key, value in LOOP.items() if key not in ("train", "credit")}
SFT = {key: OFFLINE[key] for key in OFFLINE if key != "sampling"} | {
    "sft": {"num_problems": 16, "num_epochs": 2, "minibatch_size": 8}
}
RESTEM = OFFLINE | {
    "restem": {"num_iterations": 2, "num_epochs": 1, "validation": LOOP["evaluation"] | {"split": "test"}},
}


def run(tree: Mapping[str, Any], folder: Path, *, resume: bool = False, said: list[str] | None = None) -> Path:
    recipe = make_recipe(tree, kind=kind_of(tree), source="test")
    echo = (lambda text: None) if said is None else said.append
    return run_recipe(recipe, folder, resume=resume, echo=echo)


def contents(folder: Path) -> dict[str, bytes]:
    """All that recipe and seed decide."""
    ours = {"timings.jsonl", "environment.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ours
    }
