"""Comparing methods: runs what is missing, one process per run, and puts the results side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from vineppo.compare.comparison import compare_runs
from vineppo.compare.finished_runs import check_methods, read_recipe, read_run
from vineppo.compare.tables import to_markdown
from vineppo.config import flatten
from vineppo.machine.files import read_json, write_file, write_json
from vineppo.machine.terminal import echo, printable
from vineppo.machine.threads import fair_threads
from vineppo.methods import kind_of, load_recipe
from vineppo.methods.sft import SFTRecipe
from vineppo.runs.changes import changed_recipe, changes, names_a_run, settle
from vineppo.runs.recipe import PARTS, Recipe, load_own_parts, make_recipe
from vineppo.runs.run_folder import finished_iteration
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
    echo: Callable[[str], None] = echo,
) -> dict[str, Any]:
    """Runs every recipe with every seed below `out`, then writes comparison.json and comparison.md there.

    A source that is a folder is a finished run and is only read. An SFT recipe is run once, first, with its own seed,
    and the others start from its policy. What is finished already is not run again, what was stopped is continued.
    Mistakes in recipes, overrides and folders are found before anything runs.
    Raises UserError if runs failed, after the others are done; their output is in NAME.log.
    """
    folders = [path for path in sources if path.is_dir()]
    recipes = [path for path in sources if not path.is_dir()]
    sft, jobs = plan(recipes, overrides, seeds=seeds, out=out, echo=echo)
    if not folders and not jobs:
        raise UserError("nothing to compare: give the recipe of a method, or the folder of a finished run")
    for folder in folders:
        read_run(folder)
    stored = [(str(folder), read_recipe(folder)) for folder in folders]
    check_methods([*stored, *((str(job.folder), as_stored(job.recipe)) for job in jobs)])
    out.mkdir(parents=True, exist_ok=True)
    failed: list[Job] = []
    for stage in (sft, jobs):
        failed = run_jobs([job for job in stage if not is_finished(job)], num_jobs, echo)
        if failed:
            break
    finished = [*folders, *(job.folder for job in jobs if is_finished(job))]
    comparison = write_comparison(out, finished, failed, start=sft[0].folder if sft else None) if finished else {}
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(f'{job.folder}.log' for job in failed)}")
    return comparison


def write_comparison(
    out: Path, finished: Sequence[Path], failed: Sequence[Job], *, start: Path | None
) -> dict[str, Any]:
    comparison = compare_runs(finished, start=start) | {"failed": [job.folder.name for job in failed]}
    write_json(out / "comparison.json", comparison)
    write_file(out / "comparison.md", to_markdown(comparison))
    return comparison


def plan(
    recipes: Sequence[Path], overrides: Sequence[str], *, seeds: Sequence[int], out: Path, echo: Callable[[str], None]
) -> tuple[list[Job], list[Job]]:
    """The SFT run, if there is one, and the runs that start from it. Every recipe is checked before anything runs."""
    loaded = [load_recipe(path) for path in recipes]
    scorers = [str(path) for path, recipe in zip(recipes, loaded, strict=True) if not recipe.trains_policy]
    if scorers:
        raise UserError(f"{scorers[0]}: trains a reward model, which has no accuracy to compare; leave it out")
    chosen = choose_overrides(loaded, overrides, echo)
    sft = [
        Job(load_recipe(path, own), out / recipe.name)
        for path, recipe, own in zip(recipes, loaded, chosen, strict=True)
        if isinstance(recipe, SFTRecipe)
    ]
    if len(sft) > 1:
        raise UserError("more than one SFT recipe: all methods must start from one policy")
    start = [f"model.name={sft[0].folder}"] if sft else []
    jobs = []
    for path, recipe, own in zip(recipes, loaded, chosen, strict=True):
        for seed in () if isinstance(recipe, SFTRecipe) else seeds:
            seeded = load_recipe(path, [*own, *start, f"seed={seed}"])
            jobs.append(Job(seeded, out / f"{seeded.name}-seed{seed}"))
    names = [job.folder.name for job in (*sft, *jobs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{', '.join(twice)}: two recipes or seeds have the same name; give one of them another")
    return sft, jobs


def choose_overrides(
    recipes: Sequence[Recipe], overrides: Sequence[str], echo: Callable[[str], None]
) -> list[list[str]]:
    """For every recipe those overrides that are meant for it.

    KEY=VALUE is meant for all recipes that have the key, but `learner.*` not for SFT, whose policy all methods start
    from: a rate for the methods would change their start. NAME:KEY=VALUE is meant for the recipe of that name.
    Raises UserError for one that is meant for none.
    """
    chosen: list[list[str]] = [[] for _ in recipes]
    keys = [known_keys(recipe) for recipe in recipes]
    renamed = {section for section in PARTS for override in overrides if f"{section}.name=" in override}
    for override in overrides:
        key, equals, _ = override.partition("=")
        name, colon, own_key = key.strip().rpartition(":")
        if not equals or not own_key:
            raise UserError(f"override {override!r} is not of the form KEY=VALUE or NAME:KEY=VALUE")
        if own_key == "seed" and not colon:
            raise UserError(f"override {override!r}: the methods' seeds are --seeds; SFT's is NAME:seed=...")
        known = own_key.split(".")[0] if own_key.split(".")[0] in renamed else own_key  # of a class not yet picked
        meant = [i for i, own in enumerate(keys) if known in own and (not colon or recipes[i].name == name)]
        if not meant:
            raise UserError(f"override {override!r}: {nobody(name if colon else None, own_key, recipes, keys)}")
        kept = [i for i in meant if not colon and own_key.startswith("learner.") and isinstance(recipes[i], SFTRecipe)]
        for i in kept:
            echo(f"{override}: not for {recipes[i].name}, which all start from (for it: {recipes[i].name}:{override})")
        for i in meant:
            chosen[i] += [] if i in kept else [override[len(name + colon) :] if colon else override]
    return chosen


def known_keys(recipe: Recipe) -> set[str]:
    """Its keys, its sections, and the keys of the class that a section's `name` picks."""
    keys = list(flatten(recipe.model_dump(mode="json")))
    return {".".join(parts[:n]) for parts in (key.split(".") for key in keys) for n in range(1, len(parts) + 1)}


def nobody(name: str | None, key: str, recipes: Sequence[Recipe], keys: Sequence[set[str]]) -> str:
    """Why an override is meant for none."""
    names = [recipe.name for recipe in recipes]
    if name is not None and name not in names:
        return f"no recipe here is called {name!r}, only {', '.join(names) or 'folders of runs'}"
    known = set().union(*(own for own, called in zip(keys, names, strict=True) if name in (None, called)))
    nearest = get_close_matches(key, sorted(known), n=1, cutoff=0.4)
    return "no recipe here has that key" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def as_stored(recipe: Recipe) -> dict[str, Any]:
    """As it will stand in the run's recipe.toml, if the run it starts from is there already."""
    name = recipe.model.name
    if (
        name is not None
        and Path(name).exists()
        and (not names_a_run(name) or finished_iteration(Path(name)) is not None)
    ):
        recipe = recipe.model_copy(update={"model": settle(recipe.model)})
    return as_tree(recipe)


def is_finished(job: Job) -> bool:
    """Raises UserError where the folder holds a run of another recipe."""
    stored = job.folder / "recipe.toml"
    if not stored.exists():
        return False
    found = changes(load_recipe(stored), job.recipe)
    if found:
        raise changed_recipe(job.folder, [f"{key}: {old!r} -> {new!r}" for key, (old, new) in found.items()])
    result = job.folder / "result.json"
    return result.exists() and read_json(result).get("finished") is True


def run_jobs(jobs: Sequence[Job], num_jobs: int, echo: Callable[[str], None]) -> list[Job]:
    """At most `num_jobs` processes at a time, cores divided among them; the jobs that failed."""
    # Forked from a server that has imported torch and used nothing of it: a run is a process of its own, whose peak
    # memory is its own, without the seconds that the imports take.
    context = get_context("forkserver")
    context.set_forkserver_preload(["vineppo.methods.run"])
    num_threads = fair_threads(num_jobs)
    waiting, running, failed = list(jobs), {}, []
    while waiting or running:
        while waiting and len(running) < num_jobs:
            job = waiting.pop(0)
            process = context.Process(target=run_job, args=(as_tree(job.recipe), job.folder, num_threads))
            process.start()
            running[process.sentinel] = (job, process)
        for sentinel in wait(list(running)):
            job, process = running.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            done = len(jobs) - len(waiting) - len(running)
            echo(f"{done}/{len(jobs)} {job.folder}: {summary(job) if process.exitcode == 0 else 'failed'}")
            if process.exitcode != 0:
                failed.append(job)
            if process.exitcode in (130, 143):  # stopped: so are we
                raise KeyboardInterrupt
    return failed


def as_tree(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_none=True)


def run_job(tree: Mapping[str, Any], folder: Path, num_threads: int) -> None:
    """In a process of its own, which loads own parts for itself; says everything in FOLDER.log."""
    import torch

    from vineppo.machine import runtime
    from vineppo.methods.run import run_recipe
    from vineppo.runs.progress import Lines
    from vineppo.runs.shutdown import Stopped

    log = folder.with_name(folder.name + ".log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    runtime.prepare()
    torch.set_num_threads(num_threads)
    try:
        load_own_parts(tree, str(folder))
        recipe = make_recipe(tree, kind=kind_of(tree), source=str(folder))
        lines = Lines()
        resume = (folder / "recipe.toml").exists()
        run_recipe(recipe, folder, resume=resume, sinks=[lines], echo=echo, on_start=lines.set_total)
    except UserError as error:
        sys.exit(f"vineppo: {printable(str(error))}")
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def summary(job: Job) -> str:
    return f"pass@1 {read_json(job.folder / 'result.json')['pass@1']:.3f}"
