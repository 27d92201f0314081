"""The analyses of docs/study.md: the study's runs and a few more, then every kind of analysis on them.

    python benchmarks/analyses.py --study runs/study --out runs/analyses --jobs 2

Needs the study's runs. Resumes where it stopped. Takes the learning rates that the study chose
(benchmarks/results/study/middle/sweep.json) and writes benchmarks/results/analyses/.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import get_context
from pathlib import Path

from vineppo import runtime
from vineppo.analysis import analyze
from vineppo.compare import Job, is_finished, run_jobs
from vineppo.comparison import compare_runs, to_markdown
from vineppo.recipe import load_any_recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "compare"
RESULTS = HERE / "results" / "analyses"
CHOSEN = HERE / "results" / "study" / "middle" / "sweep.json"
TASK = "task.num_steps=[6, 8]"
SEEDS = (0, 1, 2, 3, 4)
KEPT = ["checkpoint.every=1", "checkpoint.keep_last=1", "checkpoint.keep_every=5"]  # iterations 5 and 10
TRAINED = {  # name -> recipe, what it changes
    "ppo": ("ppo", []),
    "vineppo-k1": ("vineppo", ["credit.num_vines=1"]),
    "vineppo-k3": ("vineppo", ["credit.num_vines=3"]),
}
ARMS = ("vineppo", *TRAINED, "grpo")
SIZE = ["num_problems=24", "num_reference=128"]
ACTIONS = ["num_problems=48", "num_reference=128", "last_only=true"]
CREDITS = ["num_problems=24", "vines=[1, 3, 9]", "num_minibatches=8", "last_only=true"]
KINDS = {  # kind -> arms, KEY=VALUE; the long ones first
    "action_ranking": (("ppo",), ACTIONS),
    "value_accuracy": (("ppo",), SIZE),
    "by_position": (("ppo",), SIZE),
    "num_vines": (("ppo",), SIZE),
    "signal_to_noise": (("ppo",), CREDITS),
    "gradient_variance": (("ppo",), CREDITS),
    "advantage_distribution": (ARMS, []),
    "temperature": (ARMS, ["num_problems=200", "last_only=true"]),
}
WARMED = ("value_accuracy",)  # by_position and num_vines stand on its references


def make_runs(task: Path, out: Path, num_jobs: int) -> dict[str, list[Path]]:
    """Arm -> its runs, of which those that the study has are not made again."""
    chosen = json.loads(CHOSEN.read_text())["chosen"]
    jobs = [make_job(arm, chosen, task / "sft", out, seed) for seed in SEEDS for arm in TRAINED]
    run_jobs([job for job in jobs if not is_finished(job)], num_jobs, print)
    return {
        arm: [(out if arm in TRAINED else task / "reported") / f"{arm}-seed{seed}" for seed in SEEDS] for arm in ARMS
    }


def make_job(arm: str, chosen: dict[str, dict[str, float]], start: Path, out: Path, seed: int) -> Job:
    recipe, changes = TRAINED[arm]
    rates = [f"{key}={rate!r}" for key, rate in chosen[recipe].items()]
    told = [TASK, f'name="{arm}"', f"model.name={start}", f"seed={seed}"]
    return Job(load_any_recipe(RECIPES / f"{recipe}.toml", [*told, *rates, *changes, *KEPT]), out / f"{arm}-seed{seed}")


def warm(kind: str, run: Path) -> None:
    """Measures a run's reference values, in a process of its own; the analysis of all runs then finds them."""
    runtime.prepare()
    analyze(kind, [run], KINDS[kind][1], out=run / "analysis")


def make_result(kind: str, runs: list[Path]) -> None:
    runtime.prepare()
    print(analyze(kind, runs, KINDS[kind][1], out=RESULTS), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("runs/analyses"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = make_runs(args.study / "middle", args.out, args.jobs)
    RESULTS.mkdir(parents=True, exist_ok=True)
    comparison = compare_runs([run for of_arm in runs.values() for run in of_arm], start=args.study / "middle" / "sft")
    (RESULTS / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
    (RESULTS / "comparison.md").write_text(to_markdown(comparison))
    chosen = {kind: [run for arm in arms for run in runs[arm]] for kind, (arms, _) in KINDS.items()}
    with get_context("forkserver").Pool(args.jobs) as pool:
        pool.starmap(warm, [(kind, run) for kind in WARMED for run in chosen[kind]], chunksize=1)
        pool.starmap(make_result, list(chosen.items()), chunksize=1)


if __name__ == "__main__":
    main()
