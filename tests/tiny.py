"""Recipes so small that a test can train them, and how to train one and stop it.

RECIPE     VinePPO on a model from scratch that nobody has trained: a whole recipe, in a second or two
SFT        a model that is right in about a quarter of its answers to sums modulo 3
METHODS    every method, to start from such a model
ANALYSED   SFT, PPO and VinePPO on longer sums modulo 4, with two checkpoints each
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vineppo.methods import kind_of
from vineppo.methods.run import run_recipe
from vineppo.runs.metrics import Sink
from vineppo.runs.recipe import Recipe, load_own_parts, make_recipe

Tree = dict[str, Any]

SHAPE = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_size": 16}
RECIPE: Tree = {
    "name": "survivor",
    "task": {"name": "arithmetic", "num_steps": [1, 2], "num_test": 20},
    "model": {"from_scratch": SHAPE},
    "engine": {"name": "torch", "max_kv_tokens": 4096},
    "sampling": {"prompts_per_iteration": 3, "group_size": 2, "max_new_tokens": 12},
    "credit": {"name": "vineppo", "num_vines": 2},
    "train": {"num_iterations": 10, "num_epochs": 1, "minibatch_size": 4},
    "learner": {"optim": {"lr": 1e-3}},
    "evaluation": {"every": 4, "num_samples": 2, "max_new_tokens": 12},
    "checkpoint": {"keep_last": 2},
}

FLOAT32: Tree = {"precision": "float32", "optim": {"lr": 1e-3}}
FAST: Tree = {"precision": "float32", "optim": {"lr": 1e-2}}
COMMON: Tree = {"device": "cpu", "engine": {"name": "torch", "dtype": "float32", "max_kv_tokens": 8192}}

MODULO_3: Tree = {
    "name": "arithmetic", "modulus": 3, "num_steps": [1, 2], "slip_share": 0.0, "num_test": 12, "num_validation": 8,
    "operations": ["+1", "+2", "+4", "+5", "+7", "+8", "-1", "-2", "-4", "*2", "*4"],
}  # fmt: skip
START: Tree = {"from_scratch": SHAPE | {"hidden_size": 32, "ffn_size": 32, "context_size": 64}}
ALIKE: Tree = COMMON | {
    "task": MODULO_3,
    "evaluation": {"num_samples": 2, "max_new_tokens": 18},
    "checkpoint": {"every": 0, "keep_last": 1},
}
SFT: Tree = ALIKE | {
    "name": "sft",
    "model": START,
    "learner": FAST,
    "sft": {"num_problems": 200, "num_epochs": 2, "minibatch_size": 8},
}
LOOP: Tree = ALIKE | {
    "learner": FLOAT32,
    "sampling": {"prompts_per_iteration": 5, "group_size": 4, "max_new_tokens": 18, "max_resamples": 1},
    "train": {"num_iterations": 4, "num_epochs": 1, "minibatch_size": 8},
    "evaluation": ALIKE["evaluation"] | {"every": 3},
}
OFFLINE: Tree = {key: value for key, value in LOOP.items() if key != "train"}
VALIDATION: Tree = {"split": "validation", "num_samples": 2, "max_new_tokens": 18}
METHODS: dict[str, Tree] = {
    "vineppo": LOOP | {"credit": {"name": "vineppo", "num_vines": 2}},
    "ppo": LOOP | {"credit": {"name": "ppo", "warmup_iterations": 1, "critic": FLOAT32}},
    "grpo": LOOP | {"credit": {"name": "grpo"}},
    "rloo": LOOP | {"credit": {"name": "rloo"}},
    "vines": LOOP | {"credit": {"name": "vines", "num_vines": 2}},
    "tree": LOOP | {
        "credit": {"name": "tree", "num_vines": 1},
        "train": LOOP["train"] | {"advantage_norm": "scale"},
    },
    "vine_critic": LOOP | {"credit": {"name": "vine_critic", "num_vines": 1, "critic": FLOAT32}},
    "restem": OFFLINE | {
        "learner": FLOAT32 | {"optim": {"lr": 5e-3}},
        "restem": {
            "num_iterations": 4, "num_epochs": 2, "minibatch_size": 4, "candidates_every": 3, "validation": VALIDATION,
        },
    },
    "dpo": OFFLINE | {"dpo": {"num_epochs": 3, "minibatch_size": 3, "max_pairs_per_problem": 3}},
}  # fmt: skip

LONGER: Tree = COMMON | {
    "task": {
        "name": "arithmetic", "modulus": 4, "num_steps": [3, 4], "slip_share": 0.3, "num_test": 12,
        "operations": ["+1", "+2", "+3", "-1", "*3"],
    },
    "evaluation": {"num_samples": 1, "max_new_tokens": 40},
    "checkpoint": {"every": 1, "keep_last": 2},
}  # fmt: skip
ANALYSED_LOOP: Tree = LONGER | {
    "learner": FLOAT32,
    "sampling": {"prompts_per_iteration": 4, "group_size": 4, "max_new_tokens": 40},
    "train": {"num_iterations": 2, "num_epochs": 1, "minibatch_size": 8},
}
ANALYSED: dict[str, Tree] = {
    "sft": LONGER | {
        "name": "sft",
        "model": {"from_scratch": SHAPE | {"hidden_size": 32, "ffn_size": 64, "context_size": 96}},
        "learner": FAST,
        "sft": {"num_problems": 200, "num_epochs": 6, "minibatch_size": 8},
    },
    "ppo": ANALYSED_LOOP | {"name": "ppo", "credit": {"name": "ppo", "critic": FLOAT32}},
    "vineppo": ANALYSED_LOOP | {"name": "vineppo", "credit": {"name": "vineppo", "num_vines": 2}},
}  # fmt: skip


def recipe_of(tree: Mapping[str, Any]) -> Recipe:
    load_own_parts(tree, "test")
    return make_recipe(tree, kind=kind_of(tree), source="test")


def silent(_: str) -> None: ...


def run(
    tree: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    echo: Callable[[str], None] = silent,
) -> Path:
    """The folder of the last checkpoint."""
    return run_recipe(recipe_of(tree), folder, resume=resume, sinks=sinks, echo=echo)


class StopAt:
    """A sink that asks for a stop once line `iteration` of the log is written; None never does."""

    def __init__(self, iteration: int | None):
        self.iteration = iteration

    def write(self, iteration: int, metrics: object) -> None:
        if iteration == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        pass
