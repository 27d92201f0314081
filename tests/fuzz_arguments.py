"""Command lines of the fuzz campaign: options and paths that are none, or are something else."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from fuzz_cases import Base, Case
from hostile import TEXTS

PATHS = (*TEXTS, "file", "folder", "pipe", "file/x", "none/x", ".", "recipe.toml", "run", "run/metrics.jsonl")
NUMBERS = ("0", "-1", "1e3", "9" * 5000, str(2**63), "x", "", "1,1", "0,x", ",", "\u0663")


def fuzz_arguments(base: Base, scratch: Path, rng: random.Random) -> Case:
    (scratch / "file").write_text("mine\n")
    (scratch / "folder").mkdir()
    (scratch / "folder" / "precious").write_text("mine\n")
    os.mkfifo(scratch / "pipe")
    recipe, run = scratch / "recipe.toml", scratch / "run"
    shutil.copy(base.recipe("grpo"), recipe)
    shutil.copytree(base.whole("grpo"), run)
    argv = [str(arg) for arg in rng.choice(command_lines(base, recipe, run, rng))]
    return Case(argv, ascii(" ".join(argv))[:200])


def command_lines(base: Base, recipe: Path, run: Path, rng: random.Random) -> list[list[object]]:
    """One of every sort."""
    path, number, sft = (lambda: rng.choice(PATHS)), (lambda: rng.choice(NUMBERS)), base.recipe("sft")
    return [
        ["train", path()],
        ["train", recipe, "--out", path(), "train.num_iterations=1"],
        ["train", recipe, "--resume", "--out", path()],
        ["sft", path(), path()],
        ["sft", recipe],
        ["eval", path(), "--model", path()],
        ["eval", sft, "--model", path()],
        ["eval", sft, "--model", base.model(), "--json", path()],
        ["report", path()],
        ["report", run, "--out", path()],
        ["report", run, "--out", "r.html", "--figures", path()],
        ["compare", path(), "--seeds", number()],
        ["compare", run, path(), "--out", "c"],
        ["compare", run, "--jobs", number(), "--out", path()],
        ["compare", recipe, rng.choice(("seed=x", "a.b=1", "grpo=1")), "--out", "c"],
        ["analyze", path(), "--kind", rng.choice(("kl", "all", "x", ""))],
        ["analyze", run, "--kind", "efficiency", "--out", path()],
        ["analyze", run, "--kind", "kl", rng.choice(("num_draws=x", "x=1", "vines=[]"))],
        ["exact", "--seed", number(), "--batches", "0"],
        ["exact", "--batches", rng.choice(("0", "-1", "x", "9" * 5000)), "--json", "e.json"],
        ["exact", "--batches", "1", "--json", rng.choice(("folder", "none/x", ""))],
        ["quickstart", "--seed", number() + ".", "--out", path()],
        ["config", "show", path()],
        ["config", "diff", path(), recipe],
        ["config", path()],
        [path()],
        ["doctor", path()],
    ]
