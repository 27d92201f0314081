"""Runs a tiny training twice: once whole, once killed with SIGKILL again and again and resumed. Called by a test.

Every life is a process of its own, forked here before torch has started a thread, so that it begins at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vineppo.recipe import TrainRecipe, make_recipe
from vineppo.runs import run_recipe
from vineppo.shutdown import Stopped

RECIPE: dict[str, Any] = {
    "name": "survivor",
    "task": {"name": "arithmetic", "num_steps": [1, 2], "num_test": 20},
    "model": {"from_scratch": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "ffn_size": 16}},
    "engine": {"name": "torch", "max_kv_tokens": 4096},
    "sampling": {"prompts_per_iteration": 3, "group_size": 2, "max_new_tokens": 12},
    "credit": {"name": "vineppo", "num_vines": 2},
    "train": {"num_iterations": 10, "num_epochs": 1, "minibatch_size": 4},
    "learner": {"optim": {"lr": 1e-3}},
    "evaluation": {"every": 4, "num_samples": 2, "max_new_tokens": 12},
    "checkpoint": {"keep_last": 2},
}


def begin(folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    resume = (folder / "recipe.toml").exists()
    try:
        run_recipe(make_recipe(RECIPE, kind=TrainRecipe, source="test"), folder, resume=resume, say=lambda _: None)
    except Stopped as stopped:
        os._exit(stopped.exit_code)
    os._exit(0)


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".unfinished-*"))


def wait_until(condition: Callable[[], bool], pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (
        not condition()
        and time.monotonic() < deadline
        and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        pass


def main(root: Path, num_kills: int) -> None:
    draw = random.Random(0)
    whole, killed = root / "whole", root / "killed"
    started = time.monotonic()
    assert end(begin(whole)) == 0
    duration = time.monotonic() - started
    num_killed = num_saving = num_lives = 0
    while num_killed < num_kills:
        num_lives += 1
        pid = begin(killed)
        if num_lives % 3 == 0:
            wait_until(lambda: saving(killed), pid, duration)
        else:
            wait_until(lambda: False, pid, draw.uniform(0.02, 0.35) * duration)
        during_save = saving(killed)
        os.kill(pid, signal.SIGKILL)
        if end(pid) == -signal.SIGKILL:
            num_killed += 1
            num_saving += during_save
        else:
            break  # it had finished; what it left is compared all the same
    assert end(begin(killed)) == 0
    print(json.dumps({"kills": num_killed, "kills_while_saving": num_saving, "seconds_of_a_whole_run": duration}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
