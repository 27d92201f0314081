"""VinePPO beside GRPO on the shipped tasks, as docs/study_tasks.md fixes it.

    python benchmarks/task_study.py [TASK ...] [--out runs/tasks] [--jobs 2]

Runs that are there are not run again; benchmarks/results/tasks/TASK.json is written when a task's runs are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vineppo.compare.jobs import compare
from vineppo.machine import runtime
from vineppo.machine.files import read_json, write_json

HERE = Path(__file__).parent
RECIPES, RESULTS = HERE.parent / "recipes", HERE / "results" / "tasks"
TASKS = {
    "guess": "game/guess-{}.toml",
    "keydoor": "game/keydoor-{}.toml",
    "web": "web/{}.toml",
    "code": "code/{}.toml",
    "python_tool": "python-tool/{}.toml",
}
SEEDS = (1, 2, 3, 4, 5)


def run(task: str, out: Path, num_jobs: int) -> None:
    sources = [RECIPES / TASKS[task].format(name) for name in ("sft", "vineppo", "grpo")]
    found = compare(sources, seeds=SEEDS, out=out / task, num_jobs=num_jobs, echo=print)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{task}.json", summary(found, out / task))


def summary(comparison: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the page reports, without the curves."""
    one = read_json(folder / f"grpo-seed{SEEDS[0]}" / "environment.json")
    methods = {
        name: {key: of_method[key] for key in ("seeds", "final", "tokens_per_iteration", "seconds_per_iteration")}
        for name, of_method in comparison["methods"].items()
    }
    runs = [{key: of_run[key] for key in ("method", "seed", "final")} for of_run in comparison["runs"]]
    return {
        **{key: one[key] for key in ("device", "commit")},
        "initial_accuracy": comparison["initial_accuracy"],
        "methods": methods,
        "vineppo_less_grpo": comparison["differences"]["grpo"]["final"],
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse looks for the default, too, among the choices.
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    runtime.prepare()
    for task in args.tasks or TASKS:
        run(task, args.out, args.jobs)


if __name__ == "__main__":
    main()
