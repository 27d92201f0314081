"""The analyses of docs/study.md: the study's runs and a few more, then every kind of analysis on them.

    python benchmarks/analyses.py --study runs/study --out runs/analyses --jobs 2

Needs the study's runs. Resumes where it stopped: a result that exists is not made again. Takes the learning rates that
the study chose (benchmarks/results/study/middle/sweep.json) and writes benchmarks/results/analyses/.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from vineppo.analysis import analyze
from vineppo.compare.comparison import compare_runs
from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.compare.tables import to_markdown
from vineppo.machine import runtime
from vineppo.methods import load_recipe

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
METHODS = ("vineppo", "grpo", "rloo", "ppo", "restem", "dpo")
TASKS = ("short", "middle", "long")
SIZE = ["num_problems=24", "num_reference=128"]
ACTIONS = ["num_problems=48", "num_reference=128", "last_only=true"]
CREDITS = ["num_problems=24", "vines=[1, 3, 9]", "num_minibatches=8", "last_only=true"]


@dataclass(frozen=True)
class Measurement:
    kind: str
    runs: list[Path]
    changes: list[str]
    out: Path = RESULTS


def measurements(of_arm: dict[str, list[Path]], study: Path) -> list[Measurement]:
    """docs/study.md, "Analyses"; the long ones first."""
    ppo, trained = of_arm["ppo"], [run for runs in of_arm.values() for run in runs]
    after = RESULTS / "post-hoc"
    fixed = [
        Measurement("action_ranking", ppo, ACTIONS),
        Measurement("value_accuracy", ppo, SIZE),
        Measurement("by_position", ppo, SIZE),
        Measurement("num_vines", ppo, SIZE),
        Measurement("signal_to_noise", ppo, CREDITS),
        Measurement("gradient_variance", ppo, CREDITS),
        Measurement("temperature", trained, ["num_problems=200", "last_only=true"]),
        Measurement("advantage_distribution", trained, []),
    ]
    post_hoc = [
        Measurement("action_ranking", ppo, ["num_problems=200", "num_reference=128", "num_actions=3"], after),
        Measurement("value_accuracy", of_arm["vineppo"], [*SIZE, "last_only=true"], after),
        Measurement("by_position", of_arm["vineppo"], [*SIZE, "last_only=true"], after),
    ]
    compared = [
        Measurement(kind, reported_runs(study / task), [], RESULTS / task)
        for task in TASKS
        for kind in ("efficiency", "generalisation", "kl")
    ]
    return fixed + post_hoc + compared


def reported_runs(task: Path) -> list[Path]:
    return [task / "reported" / f"{method}-seed{seed}" for method in METHODS for seed in SEEDS]


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
    overrides = [TASK, f'name="{arm}"', f"model.name={start}", f"seed={seed}"]
    return Job(
        load_recipe(RECIPES / f"{recipe}.toml", [*overrides, *rates, *changes, *KEPT]), out / f"{arm}-seed{seed}"
    )


def warm(measurement: Measurement, run: Path) -> None:
    """Measures a run's reference values, in a process of its own; the analysis of all runs then finds them."""
    runtime.prepare()
    analyze(measurement.kind, [run], measurement.changes, out=run / "analysis")


def make_result(measurement: Measurement) -> None:
    runtime.prepare()
    print(analyze(measurement.kind, measurement.runs, measurement.changes, out=measurement.out), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("runs/analyses"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    of_arm = make_runs(args.study / "middle", args.out, args.jobs)
    RESULTS.mkdir(parents=True, exist_ok=True)
    comparison = compare_runs([run for runs in of_arm.values() for run in runs], start=args.study / "middle" / "sft")
    (RESULTS / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
    (RESULTS / "comparison.md").write_text(to_markdown(comparison))
    missing = [one for one in measurements(of_arm, args.study) if not (one.out / f"{one.kind}.json").exists()]
    with get_context("forkserver").Pool(args.jobs) as pool:
        # by_position and num_vines stand on value_accuracy's references
        pool.starmap(
            warm, [(one, run) for one in missing if one.kind == "value_accuracy" for run in one.runs], chunksize=1
        )
        for _ in pool.imap_unordered(make_result, missing):
            pass


if __name__ == "__main__":
    main()
