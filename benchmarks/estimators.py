"""What an iteration costs with every estimator: seconds, tokens and memory, on the quickstart's task or GSM8K.

    python benchmarks/estimators.py --out runs/estimators --json benchmarks/results/estimators-cpu.json
    python benchmarks/estimators.py --gsm8k FOLDER --model models/smollm2-135m --out runs/estimators-gsm8k \\
        --json benchmarks/results/estimators-gsm8k-cpu.json

Every estimator runs ROUNDS times from the same policy, in turn, so that a slow moment of the machine meets all of them.
The first iteration of a run is left out: it warms caches up. GSM8K takes minutes an iteration: there one small
iteration of each shows that it runs, and its seconds are reported as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from iterations import SIZES, measure, table

from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.machine import runtime
from vineppo.machine.files import read_lines
from vineppo.methods import load_recipe
from vineppo.runs.metrics import METRICS

RECIPES = Path(__file__).parent.parent / "recipes"
SCALED = "train.advantage_norm=scale"
SEEING = "sampling.num_alternatives=8"
ESTIMATORS = {
    "grpo": ["credit.name=grpo"],
    "rloo": ["credit.name=rloo"],
    "vineppo": ["credit.name=vineppo", "credit.num_vines=9"],
    "vines": ["credit.name=vines"],
    "vines-siblings": ["credit.name=vines", "credit.num_vines=0"],
    "tree": ["credit.name=tree", "credit.num_vines=[0, 1, 0, 1]", SCALED],
    "tree-first": ["credit.name=tree", "credit.train=first", SCALED],
    "vine_critic": ["credit.name=vine_critic", SEEING],
    "vine_critic-vines": ["credit.name=vine_critic", "credit.num_vines=1", SEEING],
    "vine_critic-own": ["credit.name=vine_critic", "credit.critic.backbone=own", SEEING],
}
ROUNDS = 3
ITERATIONS = 4
SMALL = [
    *("sampling.prompts_per_iteration=2", "sampling.max_new_tokens=96", "train.num_epochs=1", "train.num_iterations=1"),
    *("evaluation.num_problems=4", "evaluation.max_new_tokens=16"),
]
"""GSM8K, 8 responses."""
QUICK = ["evaluation.every=0", "evaluation.num_problems=10", "checkpoint.every=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/estimators"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gsm8k", type=Path, metavar="FOLDER", help="GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--model", type=Path, help="the policy that GSM8K's iteration starts from")
    parser.add_argument("--only", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), help="grpo among them")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.gsm8k:
        rounds, skipped = 1, 0
        recipe, common = "gsm8k-smollm2", [f"task.path={args.gsm8k}", f"model.name={args.model}"]
    else:
        rounds, skipped = ROUNDS, 1
        recipe, common = "compare", [*SIZES, "train.minibatch_size=64", f"train.num_iterations={ITERATIONS}"]
        sft = Job(load_recipe(RECIPES / "compare/sft.toml", [SIZES[0], "evaluation.num_problems=10"]), args.out / "sft")
        run(sft)
        common.append(f"model.name={sft.folder}")
    for seed in range(rounds):
        for name in args.only:
            settings = [*common, *QUICK, *(SMALL if args.gsm8k else ()), *ESTIMATORS[name], f"seed={seed}"]
            run(Job(load_recipe(RECIPES / recipe / "rloo.toml", settings), args.out / f"{name}-{seed}"))
    result = summarize(args.out, args.only, rounds, skipped)
    print(table(result["estimators"]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def run(job: Job) -> None:
    if not is_finished(job):
        assert not run_jobs([job], 1, print)


def summarize(out: Path, names: Sequence[str], rounds: int, skipped: int) -> dict[str, Any]:
    folders = {name: [out / f"{name}-{seed}" for seed in range(rounds)] for name in names}
    measured = {name: measure(of_one, skipped) | peak(of_one) for name, of_one in folders.items()}
    grpo = measured["grpo"]["seconds"]["total"]["median"]
    for of_one in measured.values():
        of_one["over_grpo"] = of_one["seconds"]["total"]["median"] / grpo
    return {**runtime.describe_machine(torch.device("cpu")), "rounds": rounds, "estimators": measured}


def peak(folders: Sequence[Path]) -> dict[str, Any]:
    """MiB: the process's peak, and what holds parameters and optimizer states."""
    lines = [read_lines(folder / METRICS)[-1] for folder in folders]
    keys = sorted({key for line in lines for key in line if key.startswith("memory/")})
    return {"memory_mb": {key.removeprefix("memory/"): max(line.get(key, 0.0) for line in lines) for key in keys}}


if __name__ == "__main__":
    main()
