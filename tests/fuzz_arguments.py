"""Command lines of the fuzz campaign: options and paths that are none, or are something else."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from fuzz_cases import Base, Case
from hostile import TEXTS


def fuzz_arguments(base: Base, scratch: Path, draw: random.Random) -> Case:
    (scratch / "file").write_text("mine\n")
    (scratch / "folder").mkdir()
    (scratch / "folder" / "precious").write_text("mine\n")
    os.mkfifo(scratch / "pipe")
    sft, recipe = base.recipe("sft"), shutil.copy(base.recipe("grpo"), scratch / "recipe.toml")
    run = shutil.copytree(base.whole("grpo"), scratch / "run")
    paths = [*TEXTS, "file", "folder", "pipe", "file/x", "none/x", ".", "recipe.toml", "run", "run/metrics.jsonl"]
    path = lambda: draw.choice(paths)  # noqa: E731
    number = lambda: draw.choice(("0", "-1", "1e3", "9" * 5000, str(2**63), "x", "", "1,1", "0,x", ",", "\u0663"))  # noqa: E731
    argv = draw.choice(
        [
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
            ["compare", recipe, draw.choice(("seed=x", "a.b=1", "grpo=1")), "--out", "c"],
            ["analyze", path(), "--kind", draw.choice(("kl", "all", "x", ""))],
            ["analyze", run, "--kind", "efficiency", "--out", path()],
            ["analyze", run, "--kind", "kl", draw.choice(("num_draws=x", "x=1", "vines=[]"))],
            ["exact", "--seed", number(), "--batches", "0"],
            ["exact", "--batches", draw.choice(("0", "-1", "x", "9" * 5000)), "--json", "e.json"],
            ["exact", "--batches", "1", "--json", draw.choice(("folder", "none/x", ""))],
            ["quickstart", "--seed", number() + ".", "--out", path()],
            ["config", "show", path()],
            ["config", "diff", path(), recipe],
            ["config", path()],
            [path()],
            ["doctor", path()],
        ]
    )
    return Case([str(arg) for arg in argv], ascii(" ".join(map(str, argv)))[:200])
