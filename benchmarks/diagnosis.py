"""The diagnosis of docs/study.md: why VinePPO trails on long chains. Needs the study's runs.

    python benchmarks/diagnosis.py --study runs/study --out runs/diagnosis --jobs 2

Resumes where it stopped. Writes benchmarks/results/diagnosis/.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from vineppo.analysis import analyze
from vineppo.compare.comparison import compare_runs
from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.compare.tables import to_markdown
from vineppo.intervals import interval
from vineppo.machine import runtime
from vineppo.machine.files import read_lines
from vineppo.methods import load_recipe

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "compare" / "vineppo.toml"
RESULTS = HERE / "results" / "diagnosis"
SEEDS = range(5)
LOOP = ("vineppo", "ppo", "grpo", "rloo")
CREDITS = ["num_problems=24", "vines=[1, 3, 9]", "last_only=true"]
LOGGED = ("credit/zero_frac", "credit/advantage_std", "optim/grad_norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("runs/diagnosis"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (RESULTS / "whitening.json").write_text(json.dumps(whitening(args.study), indent=1) + "\n")
    compare_rates(args.study / "long", args.out, args.jobs)
    with get_context("forkserver").Pool(args.jobs) as pool:
        pool.starmap(signal, [(args.study / task, RESULTS / task) for task in ("middle", "long")])


def whitening(study: Path) -> list[dict[str, Any]]:
    """Means over the iterations of a run, then over seeds."""
    rows = []
    for task in ("short", "middle", "long"):
        for method in LOOP:
            logs = [read_lines(study / task / "reported" / f"{method}-seed{seed}" / "metrics.jsonl") for seed in SEEDS]
            rows.append(
                {"task": task, "method": method}
                | {key: interval([fmean(line[key] for line in log) for log in logs]) for key in LOGGED}
            )
    return rows


def compare_rates(task: Path, out: Path, num_jobs: int) -> None:
    """VinePPO at RLOO's rate, beside the reported runs."""
    overrides = [
        "task.num_steps=[10, 12]",
        f"model.name={task / 'sft'}",
        'name="vineppo-1e-4"',
        "learner.optim.lr=1e-4",
    ]
    jobs = [Job(load_recipe(RECIPE, [*overrides, f"seed={seed}"]), out / f"vineppo-1e-4-seed{seed}") for seed in SEEDS]
    run_jobs([job for job in jobs if not is_finished(job)], num_jobs, print)
    reported = [task / "reported" / f"{method}-seed{seed}" for method in LOOP for seed in SEEDS]
    comparison = compare_runs([job.folder for job in jobs] + reported, start=task / "sft")
    (RESULTS / "rate.json").write_text(json.dumps(comparison, indent=1) + "\n")
    (RESULTS / "rate.md").write_text(to_markdown(comparison))


def signal(task: Path, out: Path) -> None:
    runtime.prepare()
    runs = [task / "reported" / f"rloo-seed{seed}" for seed in SEEDS]
    print(analyze("signal_to_noise", runs, CREDITS, out=out), flush=True)


if __name__ == "__main__":
    main()
