"""The second study, as docs/study2.md fixes it: eight arms, three tasks, equal sampled tokens and equal seconds.

    python benchmarks/study2.py start     the policies to start from
    python benchmarks/study2.py pays      what --kind pays says of them, before anything is trained
    python benchmarks/study2.py pilot     tokens and seconds of an iteration, alone on an idle machine
    python benchmarks/study2.py tune      one rate for each arm
    python benchmarks/study2.py report    seeds that were used for nothing before

Every step writes benchmarks/results/study2/STEP.json after each run and leaves out what is there, so each can be
stopped and taken up again, on another machine too.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.pays import draw_pilots, judge
from vineppo.analysis.rates import UNKNOWN
from vineppo.analysis.subject import RunCheckpoint, open_subject
from vineppo.compare.finished_runs import read_run
from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.machine import runtime
from vineppo.machine.files import read_json, read_lines, write_json
from vineppo.methods import load_recipe
from vineppo.methods.train import TrainRecipe
from vineppo.runs.run_folder import CHECKPOINTS

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "compare"
RESULTS = HERE / "results" / "study2"
VARIANTS = {
    name: ["task.num_steps=[6,8]", f"task.variant={name}"] for name in ("fatal", "repair", "forks", "distractors")
}
TASKS = ("fatal", "repair", "forks")
SCALE = "train.advantage_norm=scale"
ARMS = {
    "grpo": ["credit.name=grpo"],
    "rloo": ["credit.name=rloo"],
    "ppo": ["credit.name=ppo", "credit.critic.optim.lr=1e-3"],
    "vineppo-3": ["credit.name=vineppo", "credit.num_vines=3"],
    "vineppo-9": ["credit.name=vineppo", "credit.num_vines=9"],
    "vine_critic": ["credit.name=vine_critic", SCALE],
    "vine_critic-1": ["credit.name=vine_critic", "credit.num_vines=1", SCALE],
    "tree": [
        "credit.name=tree",
        "credit.states.kind=forks",
        "credit.states.every=2",
        "sampling.num_alternatives=1",
        SCALE,
    ],
}
RATES = (5e-5, 1e-4, 2e-4)
NUM_EXTENSIONS = 1
TUNING_SEED, SEEDS, PAYS_SEEDS = 100, (0, 1, 2, 3, 4), (0, 1, 2)
NUM_ITERATIONS = 50
"""Of GRPO, 8 x 8 rollouts each."""
PILOT_ITERATIONS = 4
MARGIN = 1.05
"""Responses may become shorter than the pilot's."""
TUNING = ["evaluation.split=validation", "evaluation.num_problems=250", "evaluation.num_samples=2"]
NUM_EVALUATIONS = 10

Entry = dict[str, Any]


class Study:
    def __init__(self, out: Path, num_jobs: int):
        self.out, self.num_jobs = out, num_jobs

    def sft(self, task: str) -> Job:
        return Job(load_recipe(RECIPES / "sft.toml", VARIANTS[task]), self.out / task / "sft")

    def start(self) -> None:
        jobs = [self.sft(task) for task in TASKS]
        self.run(jobs)
        found = {task: read_run_entry(job) | {"policy": digest(job)} for task, job in zip(TASKS, jobs, strict=True)}
        known = read("start")
        differing = [task for task in known if known[task]["policy"] != found[task]["policy"]]
        if differing:
            print(f"other policies than those of earlier runs: {', '.join(differing)}")
        write_json(RESULTS / "start.json", known | {task: found[task] for task in found if task not in known})

    def pays(self) -> None:
        for task in TASKS:
            known = read("pays")
            if task not in known:
                write_json(RESULTS / "pays.json", known | {task: self.ask(task)})

    def policy(self, task: str) -> RunCheckpoint:
        """That all start from, and the recipe that would train on."""
        start = self.sft(task).folder
        recipe = load_recipe(RECIPES / "rloo.toml", [*VARIANTS[task], f"model.name={start}"])
        assert isinstance(recipe, TrainRecipe)
        return RunCheckpoint(start, recipe, max((start / CHECKPOINTS).iterdir()))

    def ask(self, task: str) -> Entry:
        """Three forecasts of the default size."""
        found = {}
        for seed in PAYS_SEEDS:
            config = AnalysisConfig(split="train", vines=(1, 3, 9), seed=seed)
            with open_subject(self.policy(task)) as subject:
                found[str(seed)] = judge(draw_pilots(subject, config), UNKNOWN, config)
        return head() | found

    def pilot(self) -> None:
        for task in TASKS:
            for arm in ARMS:
                known = read("pilot")
                if f"{task}/{arm}" not in known:
                    settings = [f"train.num_iterations={PILOT_ITERATIONS}", "evaluation.every=0", *TUNING[:1]]
                    job = self.job(task, arm, 1e-4, TUNING_SEED, "pilot", [*settings, "evaluation.num_problems=8"])
                    self.run([job], alone=True)
                    write_json(RESULTS / "pilot.json", known | {f"{task}/{arm}": head() | per_iteration(job.folder)})

    def tune(self) -> None:
        self.record("tune", [self.tuning(task, arm, rate) for rate in RATES for task in TASKS for arm in ARMS])
        for _ in range(NUM_EXTENSIONS):
            edges = {arm: beyond(scores(arm)) for arm in ARMS}
            jobs = [self.tuning(task, arm, rate) for arm, rate in edges.items() if rate for task in TASKS]
            self.record("tune", jobs)
        write_json(RESULTS / "chosen.json", {arm: best(scores(arm)) for arm in ARMS})

    def tuning(self, task: str, arm: str, rate: float) -> Job:
        num = iterations(task, arm, "tokens")
        settings = [*TUNING, f"train.num_iterations={num}", "evaluation.every=0"]
        return self.job(task, arm, rate, TUNING_SEED, f"tune-{rate:g}", settings)

    def report(self) -> None:
        chosen = read("chosen")
        self.record(
            "report", [self.reported(task, arm, chosen[arm], s) for s in SEEDS for task in TASKS for arm in ARMS]
        )

    def reported(self, task: str, arm: str, rate: float, seed: int) -> Job:
        """Until both budgets are spent."""
        by_tokens, by_seconds = (iterations(task, arm, budget) for budget in ("tokens", "seconds"))
        every = max(1, round(max(by_tokens, by_seconds) / NUM_EVALUATIONS))
        num = math.ceil(MARGIN * max(by_tokens, by_seconds) / every) * every
        settings = [f"train.num_iterations={num}", f"evaluation.every={every}"]
        return self.job(task, arm, rate, seed, "report", settings)

    def job(self, task: str, arm: str, rate: float, seed: int, stage: str, settings: Sequence[str]) -> Job:
        overrides = [*VARIANTS[task], *ARMS[arm], f"learner.optim.lr={rate!r}", f"seed={seed}", *settings]
        start = f"model.name={self.sft(task).folder}"
        recipe = "ppo" if arm == "ppo" else "rloo"
        folder = self.out / task / stage / f"{arm}-seed{seed}"
        return Job(load_recipe(RECIPES / f"{recipe}.toml", [*overrides, start, f"name={arm}"]), folder)

    def record(self, step: str, jobs: Sequence[Job]) -> None:
        """Runs what is not in the step's file, and writes each into it as it ends."""
        missing = [job for job in jobs if key_of(job) not in read(step)]

        def keep(text: str) -> None:
            print(text, flush=True)
            known = read(step)
            done = {key_of(job): job for job in missing if key_of(job) not in known and is_finished(job)}
            write_json(RESULTS / f"{step}.json", known | {key: entry(job, step) for key, job in done.items()})

        self.run(missing, echo=keep)

    def run(self, jobs: Sequence[Job], *, alone: bool = False, echo: Any = print) -> None:
        missing = [job for job in jobs if not is_finished(job)]
        for job in missing:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
        for job in run_jobs(missing, 1 if alone else self.num_jobs, echo):
            print(f"FAILED: {job.folder}")


def key_of(job: Job) -> str:
    task, stage, name = job.folder.parts[-3:]
    return f"{task}/{stage}/{name}"


def read(step: str) -> Entry:
    path = RESULTS / f"{step}.json"
    return read_json(path) if path.exists() else {}


def head() -> Entry:
    machine = runtime.describe_machine(torch.device("cpu"))
    return {key: machine[key] for key in ("device", "num_cores", "commit")}


def entry(job: Job, step: str) -> Entry:
    recipe = job.recipe
    facts = {"rate": recipe.learner.optim.lr, "seed": recipe.seed, **read_run_entry(job)}  # type: ignore[attr-defined]
    return facts | ({"points": list(points(job))} if step == "report" else {})


def read_run_entry(job: Job) -> Entry:
    result = read_json(job.folder / "result.json")
    environment = read_json(job.folder / "environment.json")
    return {
        **{key: result[key] for key in ("pass@1", "num_problems", "iteration", "length_mean")},
        **{key: environment[key] for key in ("device", "commit")},
    }


def points(job: Job) -> Iterator[Entry]:
    """One per evaluation. Without seconds: two runs share the cores."""
    for point in read_run(job.folder)["points"]:
        yield {key: point[key] for key in ("iteration", "tokens", "accuracy", "train_accuracy", "kl")}


def digest(job: Job) -> str:
    """Of the policy's weights."""
    weights = max((job.folder / CHECKPOINTS).iterdir()) / "model.safetensors"
    return hashlib.blake2b(weights.read_bytes(), digest_size=8).hexdigest()


def per_iteration(folder: Path) -> Entry:
    """Sampled tokens of the first iterations, which are of the policy they start from; seconds without the first."""
    metrics, timings = (read_lines(folder / f"{name}.jsonl") for name in ("metrics", "timings"))
    sampled = [sum(line.get(f"tokens/{purpose}", 0) for purpose in ("policy", "vine")) for line in metrics]
    phases = ("sample", "credit", "score", "update")
    spent = [sum(line.get(f"seconds/{phase}", 0.0) for phase in phases) for line in timings[1:]]
    return {"tokens": fmean(sampled), "seconds": median(spent), "seconds_each": spent}


def iterations(task: str, arm: str, budget: str) -> int:
    """As many as cost what GRPO's do, by the pilot."""
    pilot = read("pilot")
    return max(1, round(NUM_ITERATIONS * pilot[f"{task}/grpo"][budget] / pilot[f"{task}/{arm}"][budget]))


def scores(arm: str) -> dict[float, float]:
    """The mean validation accuracy over the tasks, of every rate; a run that failed counts as 0."""
    tried: dict[float, dict[str, float]] = {}
    for key, of_run in read("tune").items():
        task, _, name = key.split("/")
        if name == f"{arm}-seed{TUNING_SEED}":
            tried.setdefault(of_run["rate"], {})[task] = of_run["pass@1"]
    return {rate: sum(by_task.values()) / len(TASKS) for rate, by_task in tried.items()}


def best(found: dict[float, float]) -> float:
    """Of equals the smaller."""
    return max(sorted(found), key=lambda rate: found[rate])


def beyond(found: dict[float, float]) -> float | None:
    """A rate beyond the edge at which the best one lies."""
    if best(found) == max(found):
        return 2 * max(found)
    return min(found) / 2 if best(found) == min(found) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["start", "pays", "pilot", "tune", "report"])
    parser.add_argument("--out", type=Path, default=Path("runs/study2"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    runtime.prepare()
    getattr(Study(args.out.resolve(), args.jobs), args.step)()


if __name__ == "__main__":
    main()
