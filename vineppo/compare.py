"""Comparing methods: runs what is missing, one process per run, and puts the results side by side."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from vineppo.changes import changes
from vineppo.comparison import compare_runs, to_markdown
from vineppo.recipe import Recipe, SFTRecipe, load_any_recipe
from vineppo.terminal import printable, say
from vineppo.threads import fair_threads
from vineppo.types import UserError


@dataclass(frozen=True)
class Job:
    """One run: a checked recipe and where it goes."""

    recipe: Recipe
    folder: Path


def compare(
    sources: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int],
    out: Path,
    num_jobs: int = 1,
    say: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Runs every recipe with every seed below `out`, then writes comparison.json and comparison.md there.

    A source that is a folder is a finished run and is only read. An SFT recipe is run once, first, with its own seed,
    and the others start from its policy. What is finished already is not run again, what was stopped is continued.
    Raises UserError if runs failed, after the others are done; their output is in NAME.log.
    """
    folders = [path for path in sources if path.is_dir()]
    recipes = [path for path in sources if not path.is_dir()]
    sft, jobs = plan(recipes, overrides, seeds=seeds, out=out)
    out.mkdir(parents=True, exist_ok=True)
    for stage in (sft, jobs):
        failed = run_jobs([job for job in stage if not is_finished(job)], num_jobs, say)
        if failed and stage is sft:
            break
    finished = [*folders, *(job.folder for job in jobs if is_finished(job))]
    if finished:
        comparison = compare_runs(finished, start=sft[0].folder if sft else None)
        comparison["failed"] = [job.folder.name for job in failed]
        (out / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
        (out / "comparison.md").write_text(to_markdown(comparison))
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(f'{job.folder}.log' for job in failed)}")
    return comparison


def plan(
    recipes: Sequence[Path], overrides: Sequence[str], *, seeds: Sequence[int], out: Path
) -> tuple[list[Job], list[Job]]:
    """The SFT run, if there is one, and the runs that start from it. Every recipe is checked before anything runs."""
    loaded = [load_fitting(path, overrides) for path in recipes]
    for override in overrides:
        if not any(fits(override, recipe) for recipe in loaded):
            raise UserError(f"override {override!r}: no recipe here has a section or key of that name")
    sft = [Job(recipe, out / recipe.name) for recipe in loaded if isinstance(recipe, SFTRecipe)]
    if len(sft) > 1:
        raise UserError("more than one SFT recipe: all methods must start from one policy")
    others = [path for path, recipe in zip(recipes, loaded, strict=True) if not isinstance(recipe, SFTRecipe)]
    start = [f"model.name={sft[0].folder}"] if sft else []
    jobs = []
    for path in others:
        for seed in seeds:
            recipe = load_fitting(path, [*overrides, *start, f"seed={seed}"])
            jobs.append(Job(recipe, out / f"{recipe.name}-seed{seed}"))
    names = [job.folder.name for job in (*sft, *jobs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{', '.join(twice)}: two recipes have the same name; give one of them another")
    return sft, jobs


def load_fitting(path: Path, overrides: Sequence[str]) -> Recipe:
    """With those overrides whose section this kind of recipe has: train.num_iterations is not RestEM's."""
    recipe = load_any_recipe(path)
    return load_any_recipe(path, [override for override in overrides if fits(override, recipe)])


def fits(override: str, recipe: Recipe) -> bool:
    return override.split("=")[0].split(".")[0].strip() in type(recipe).model_fields


def is_finished(job: Job) -> bool:
    """Raises UserError where the folder holds a run of another recipe."""
    stored = job.folder / "recipe.toml"
    if not stored.exists():
        return False
    found = changes(load_any_recipe(stored), job.recipe)
    if found:
        lines = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in found.items())
        raise UserError(f"{job.folder}: the recipe has changed since this run began ({lines}); choose another --out")
    result = job.folder / "result.json"
    return result.exists() and json.loads(result.read_text()).get("finished", False)


def run_jobs(jobs: Sequence[Job], num_jobs: int, say: Callable[[str], None]) -> list[Job]:
    """At most `num_jobs` processes at a time, cores divided among them; the jobs that failed."""
    # Forked from a server that has imported torch and used nothing of it: a run is a process of its own, whose peak
    # memory is its own, without the seconds that the imports take.
    context = get_context("forkserver")
    context.set_forkserver_preload(["vineppo.runs"])
    num_threads = fair_threads(num_jobs)
    waiting, running, failed = list(jobs), {}, []
    while waiting or running:
        while waiting and len(running) < num_jobs:
            job = waiting.pop(0)
            process = context.Process(target=run_job, args=(job.recipe, job.folder, num_threads))
            process.start()
            running[process.sentinel] = (job, process)
        for sentinel in wait(list(running)):
            job, process = running.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            done = len(jobs) - len(waiting) - len(running)
            say(f"{done}/{len(jobs)} {job.folder}: {summary(job) if process.exitcode == 0 else 'failed'}")
            if process.exitcode != 0:
                failed.append(job)
            if process.exitcode in (130, 143):  # stopped: so are we
                raise KeyboardInterrupt
    return failed


def run_job(recipe: Recipe, folder: Path, num_threads: int) -> None:
    """In a process of its own; says everything in FOLDER.log."""
    import torch

    from vineppo import runtime
    from vineppo.progress import Lines
    from vineppo.runs import run_recipe
    from vineppo.shutdown import Stopped

    log = folder.with_name(folder.name + ".log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    runtime.prepare()
    torch.set_num_threads(num_threads)
    try:
        lines = Lines()
        resume = (folder / "recipe.toml").exists()
        run_recipe(recipe, folder, resume=resume, sinks=[lines], say=say, on_start=lines.set_total)
    except UserError as error:
        sys.exit(f"vineppo: {printable(str(error))}")
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def summary(job: Job) -> str:
    result: Mapping[str, Any] = json.loads((job.folder / "result.json").read_text())
    return f"pass@1 {result['pass@1']:.3f}"
