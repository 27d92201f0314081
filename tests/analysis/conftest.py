"""Two tiny runs, of PPO and VinePPO from one SFT model, that keep two checkpoints each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vineppo.methods import kind_of
from vineppo.methods.run import run_recipe
from vineppo.runs.recipe import make_recipe

COMMON: dict[str, Any] = {
    "device": "cpu",
    "task": {
        "name": "arithmetic", "modulus": 4, "num_steps": [3, 4], "slip_share": 0.3, "num_test": 12,
        "operations": ["+1", "+2", "+3", "-1", "*3"],
    },
    "engine": {"name": "torch", "dtype": "float32", "max_kv_tokens": 8192},
    "evaluation": {"num_samples": 1, "max_new_tokens": 40},
    "checkpoint": {"every": 1, "keep_last": 2},
}  # fmt: skip
SFT = COMMON | {
    "name": "sft",
    "model": {"from_scratch": {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "ffn_size": 64, "context_size": 96}},
    "learner": {"precision": "float32", "optim": {"lr": 1e-2}},
    "sft": {"num_problems": 200, "num_epochs": 6, "minibatch_size": 8},
}
STEPPER = {"precision": "float32", "optim": {"lr": 1e-3}}
LOOP = COMMON | {
    "learner": STEPPER,
    "sampling": {"prompts_per_iteration": 4, "group_size": 4, "max_new_tokens": 40},
    "train": {"num_iterations": 2, "num_epochs": 1, "minibatch_size": 8},
}
CREDIT = {"ppo": {"name": "ppo", "critic": STEPPER}, "vineppo": {"name": "vineppo", "num_vines": 2}}


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("analysed")
    trees = {"sft": SFT}
    for name, credit in CREDIT.items():
        trees[name] = LOOP | {"name": name, "credit": credit, "model": {"name": str(root / "sft")}}
    for name, tree in trees.items():
        run_recipe(make_recipe(tree, kind=kind_of(tree), source="test"), root / name, echo=lambda _: None)
    return {name: root / name for name in CREDIT}
