"""Run folders and comparisons as the program leaves them, written by hand and small."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folder import two_groups

from vineppo.report.read import read_run
from vineppo.report.rollouts import BUDGET


@pytest.fixture
def write_run(tmp_path) -> Callable[..., Path]:
    def write(name: str = "run", *, num_iterations: int = 3, rollouts: Callable = two_groups, **more: Any) -> Path:
        folder = tmp_path / name
        (folder / "rollouts").mkdir(parents=True)
        (folder / "recipe.toml").write_text(
            f'name = "{name}"\nseed = 7\n[model]\nname = "some/model"\n[task]\nname = "arithmetic"\n'
            f'[credit]\nname = "vineppo"\n[train]\nnum_iterations = {num_iterations}\n'
        )
        (folder / "environment.json").write_text('{"device": "cpu: Some", "torch": "2.6"}')
        metrics, timings = [], []
        for i in range(1, num_iterations + 1):
            low_high = {"eval/pass@1_low": 0.1 * i - 0.05, "eval/pass@1_high": 0.1 * i + 0.05}
            line = {"iteration": i, "reward/mean": 0.6, "kl/reference": 0.1 * i, "rollouts/num": 5, "tokens/vine": 90}
            metrics.append(line | {"eval/pass@1": 0.1 * i, "eval/num_problems": 50} | low_high | more)
            timings.append({"iteration": i, "seconds/sample": 1.0, "seconds/credit": 2.0})
            with gzip.open(folder / "rollouts" / f"iteration-{i:06d}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(line) + "\n" for line in rollouts(i))
        for file_name, lines in (("metrics.jsonl", metrics), ("timings.jsonl", timings)):
            (folder / file_name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "result.json").write_text('{"finished": true}')
        return folder

    return write


@pytest.fixture
def read() -> Callable[[Path], dict[str, Any]]:
    return lambda folder: read_run(folder, BUDGET)


@pytest.fixture
def comparison() -> dict[str, Any]:
    """comparison.json of two methods with two seeds."""

    def method(accuracy: float) -> dict[str, Any]:
        around = {"mean": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.1], "n": 2}
        axes = {"iteration": 2, "steps": 8, "rollouts": 16, "tokens": 900, "seconds": 4.5}
        start = dict.fromkeys(axes, 0) | {"accuracy": {"mean": 0.2, "ci95": None, "n": 2}, "train_accuracy": None}
        return {
            "seeds": [0, 1],
            "peak": around,
            "final": around,
            "curve": [start | {"kl": 0.0}, axes | {"accuracy": around, "train_accuracy": 0.3, "kl": 0.2}],
            "to_target": None,
            "kl_at_equal_accuracy": {"mean": 0.1, "ci95": None, "n": 1},
            "memory_mb": {"peak_mb": 800.0},
            "seconds_per_iteration": {"sample": 1.0, "update": 0.5},
            "tokens_per_iteration": {"policy": 450},
        }

    methods = {"vineppo": method(0.6), 'ppo, the "old" one': method(0.5)}
    differences = {'ppo, the "old" one': {"peak": methods["vineppo"]["peak"], "final": methods["vineppo"]["final"]}}
    return {"methods": methods, "differences": differences, "equal_accuracy": 0.5, "runs": [], "failed": []}
