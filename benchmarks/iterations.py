"""What an iteration costs: seconds and generated tokens by phase, every method at the quickstart's sizes.

    python benchmarks/iterations.py --out runs/iterations --json benchmarks/results/iterations-cpu.json

Every method runs ROUNDS times from the same policy, in turn, so that a slow moment of the machine meets all of them.
The first iteration of a run is left out: it warms caches up. RestEM refits in each of its iterations; DPO+ has no
iterations and is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.machine import runtime
from vineppo.machine.files import read_lines
from vineppo.methods import load_recipe
from vineppo.runs.metrics import METRICS, TIMINGS

RECIPES = Path(__file__).parent.parent / "recipes" / "compare"
METHODS = ("vineppo", "ppo", "grpo", "rloo", "restem")
ROUNDS = 3
ITERATIONS = 4
SIZES = ["task.num_steps=[8, 12]", "sampling.prompts_per_iteration=16", "sampling.max_new_tokens=128"]
QUICK = ["evaluation.every=0", "evaluation.num_problems=10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/iterations"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sft = Job(load_recipe(RECIPES / "sft.toml", [SIZES[0], "evaluation.num_problems=10"]), args.out / "sft")
    jobs = [make_job(method, seed, args.out) for seed in range(ROUNDS) for method in METHODS]
    for job in (sft, *jobs):
        if not is_finished(job):
            assert not run_jobs([job], 1, print)
    result = summarize(args.out)
    print(table(result["methods"]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def make_job(method: str, seed: int, out: Path) -> Job:
    loop = ["train.minibatch_size=64", f"train.num_iterations={ITERATIONS}"]
    sizes = [f"restem.num_iterations={ITERATIONS}"] if method == "restem" else loop
    overrides = [*SIZES, *sizes, *QUICK, f"seed={seed}", f"model.name={out / 'sft'}"]
    return Job(load_recipe(RECIPES / f"{method}.toml", overrides), out / f"{method}-{seed}")


def summarize(out: Path) -> dict[str, Any]:
    methods = {method: measure([out / f"{method}-{seed}" for seed in range(ROUNDS)]) for method in METHODS}
    cost = {method: of_method["seconds"]["total"]["median"] for method, of_method in methods.items()}
    return {
        **runtime.describe_machine(torch.device("cpu")),
        "rounds": ROUNDS,
        "iterations_measured": ROUNDS * (ITERATIONS - 1),
        "vineppo_over_grpo": cost["vineppo"] / cost["grpo"],
        "vineppo_over_ppo": cost["vineppo"] / cost["ppo"],
        "methods": methods,
    }


def measure(folders: list[Path], skipped: int = 1) -> dict[str, Any]:
    """Minimum, median and maximum over all iterations but the first `skipped` of each run."""
    timings = [line for folder in folders for line in read_lines(folder / TIMINGS)[skipped:]]
    metrics = [line for folder in folders for line in read_lines(folder / METRICS)[skipped:]]
    unwanted = {"seconds/evaluate", "seconds/checkpoint"}
    phases = sorted({key for line in timings for key in line if key.startswith("seconds/")} - unwanted)
    seconds = {phase.removeprefix("seconds/"): [line.get(phase, 0.0) for line in timings] for phase in phases}
    seconds["total"] = [sum(line.get(phase, 0.0) for phase in phases) for line in timings]
    purposes = ("policy", "vine", "validation")
    return {
        "seconds": {phase: {"min": min(s), "median": median(s), "max": max(s)} for phase, s in seconds.items()},
        "tokens": {
            purpose: median(line.get(f"tokens/{purpose}", 0) for line in metrics)
            for purpose in purposes
            if any(f"tokens/{purpose}" in line for line in metrics)
        },
    }


def table(methods: dict[str, Any]) -> str:
    phases = sorted({phase for of_method in methods.values() for phase in of_method["seconds"]})
    lines = [f"{'':18}" + "".join(f"{phase:>10}" for phase in phases)]
    for method, of_method in methods.items():
        numbers = [of_method["seconds"].get(phase, {"median": 0.0})["median"] for phase in phases]
        lines.append(f"{method:18}" + "".join(f"{number:10.2f}" for number in numbers) + f"  {of_method['tokens']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
