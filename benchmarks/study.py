"""The comparison of docs/study.md: six methods, three tasks, learning rates chosen first, then fresh seeds.

    python benchmarks/study.py --out runs/study --jobs 2 [--tasks short middle long]

Resumes where it stopped. Writes benchmarks/results/study/TASK/{sweep.json, comparison.json, comparison.md}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vineppo.compare.comparison import compare_runs
from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.compare.tables import to_markdown
from vineppo.methods import load_recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "compare"
TASKS = {"short": [3, 4], "middle": [6, 8], "long": [10, 12]}
RATES = {
    "vineppo": [5e-5, 1e-4, 2e-4, 4e-4],
    "ppo": [5e-5, 1e-4, 2e-4, 4e-4],
    "grpo": [5e-5, 1e-4, 2e-4, 4e-4],
    "rloo": [5e-5, 1e-4, 2e-4, 4e-4],
    "restem": [1e-4, 2e-4, 4e-4, 8e-4],
    "dpo": [5e-5, 1e-4, 2e-4, 4e-4],
}
CRITIC_RATES = [1e-4, 3e-4, 1e-3, 3e-3]
LR, CRITIC_LR = "learner.optim.lr", "credit.critic.optim.lr"
MAX_EXTENSIONS = 2
TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)
TUNING = [
    'evaluation.split="validation"',
    "evaluation.num_problems=250",
    "evaluation.num_samples=2",
    "evaluation.every=0",
]


class Study:
    """One task: every run that was started, and what was chosen from them."""

    def __init__(self, task: str, out: Path, num_jobs: int):
        self.folder = out / task
        self.task = f"task.num_steps={TASKS[task]}"
        self.num_jobs = num_jobs
        self.results = HERE / "results" / "study" / task
        self.sweep: list[dict[str, Any]] = []
        self.chosen: dict[str, dict[str, float]] = {}
        self.failed: list[str] = []

    def run(self) -> None:
        self.results.mkdir(parents=True, exist_ok=True)
        sft = Job(load_recipe(RECIPES / "sft.toml", [self.task]), self.folder / "sft")
        self.start([sft])
        for method in RATES:
            self.chosen[method] = self.choose(method)
            self.write_sweep()
        jobs = [self.job("reported", method, self.chosen[method], seed) for seed in SEEDS for method in RATES]
        self.start(jobs)
        comparison = compare_runs([job.folder for job in jobs if is_finished(job)], start=sft.folder)
        comparison["chosen"], comparison["failed"] = self.chosen, self.failed
        (self.results / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
        (self.results / "comparison.md").write_text(to_markdown(comparison))

    def choose(self, method: str) -> dict[str, float]:
        """The policy's rate first; for PPO then the critic's, at that rate."""
        rate = self.best(method, LR, RATES[method], {})
        if method != "ppo":
            return {LR: rate}
        return {LR: rate, CRITIC_LR: self.best(method, CRITIC_LR, CRITIC_RATES, {LR: rate})}

    def best(self, method: str, key: str, rates: Sequence[float], fixed: dict[str, float]) -> float:
        """A rate at the edge of its grid is followed beyond it, by a factor of 2, at most so many times."""
        tried = {rate: self.accuracy(method, {**fixed, key: rate}) for rate in rates}
        for _ in range(MAX_EXTENSIONS):
            chosen = max(sorted(tried), key=lambda rate: tried[rate])
            if chosen == max(tried):
                tried[chosen * 2] = self.accuracy(method, {**fixed, key: chosen * 2})
            elif chosen == min(tried):
                tried[chosen / 2] = self.accuracy(method, {**fixed, key: chosen / 2})
        return max(sorted(tried), key=lambda rate: tried[rate])

    def accuracy(self, method: str, rates: dict[str, float]) -> float:
        """Mean validation accuracy over the tuning seeds at the end; a run that failed counts as 0."""
        jobs = [self.job("tuning", method, rates, seed) for seed in TUNING_SEEDS]
        self.start(jobs)
        found = [
            json.loads((job.folder / "result.json").read_text())["pass@1"] if is_finished(job) else 0.0 for job in jobs
        ]
        self.sweep.append({"method": method, **rates, "validation_accuracy": found, "mean": fmean(found)})
        return fmean(found)

    def job(self, stage: str, method: str, rates: dict[str, float], seed: int) -> Job:
        overrides = [self.task, f"model.name={self.folder / 'sft'}", f"seed={seed}"]
        overrides += [f"{key}={rate!r}" for key, rate in rates.items()] + (TUNING if stage == "tuning" else [])
        tried = "".join(f"-{rate:g}" for rate in rates.values()) if stage == "tuning" else ""
        return Job(
            load_recipe(RECIPES / f"{method}.toml", overrides), self.folder / stage / f"{method}{tried}-seed{seed}"
        )

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
        missing = [job for job in jobs if not is_finished(job) and str(job.folder) not in self.failed]
        self.failed += [
            str(job.folder) for job in run_jobs(missing, self.num_jobs, lambda text: print(text, flush=True))
        ]

    def write_sweep(self) -> None:
        text = json.dumps({"sweep": self.sweep, "chosen": self.chosen, "failed": self.failed}, indent=1)
        (self.results / "sweep.json").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    for task in args.tasks:
        Study(task, args.out, args.jobs).run()


if __name__ == "__main__":
    main()
