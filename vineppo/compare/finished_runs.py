"""Finished runs as they lie on the disk: read whole, checked, and asked whether they may stand in one table.

A folder may be damaged, half done, copied or somebody else's. Whatever is wrong with it is a UserError that names the
file and the line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vineppo.config import flatten, read_toml
from vineppo.machine.files import read_json, read_lines
from vineppo.methods import METHODS
from vineppo.runs.metrics import METRICS, TIMINGS
from vineppo.types import UserError

AXES = ("iteration", "steps", "rollouts", "tokens", "seconds")
NOT_TRAINING = {"seconds/evaluate", "seconds/checkpoint"}
NOT_COMPARED = ("seed", "metrics.", "checkpoint.")
"""Keys in which the runs of one method may differ: they change no policy, or are what an interval is over."""
SHARED = ("task.", "evaluation.")
SPARSE = {"evaluation.every"}  # methods may be looked at as often as they like

LARGEST = sys.float_info.max

Line = Mapping[str, Any]


def read_run(folder: Path, start: Path | None = None) -> dict[str, Any]:
    """One run: its evaluations as points on every axis, its memory, and its seconds and tokens by what they went into.

    `start` is a run; where it is the one that this run's policy comes from, its accuracy is the first point.
    """
    recipe, result = read_recipe(folder), read_finished(folder)
    metrics, timings = read_metrics_and_timings(folder, result)
    environment = read_json(folder / "environment.json")
    initial = read_finished(start) if start is not None and starts_from(recipe, start) else None
    points = list(read_points(folder, metrics, timings, initial))
    accuracies = [point["accuracy"] for point in points if point["iteration"] > 0]
    if not accuracies:
        raise UserError(f"{folder}: this run has no evaluation")
    phases = {key for line in timings for key in line if key.startswith("seconds/")}
    purposes = {key for line in metrics for key in line if key.startswith("tokens/")}
    held = [key for key in metrics[-1] if key.startswith("memory/")]
    return {
        "folder": folder.name,
        "method": recipe["name"],
        "credit": section(recipe, "credit").get("name"),
        "seed": recipe["seed"],
        "stepwise": any(method.Recipe.stepwise for section, method in METHODS.items() if section in recipe),
        "num_iterations": len(metrics),
        "points": [point | {"seed": recipe["seed"]} for point in points],
        "peak": max(accuracies),
        "final": accuracies[-1],
        "memory_mb": {key.removeprefix("memory/"): figure(metrics[-1], key, folder / METRICS) for key in held}
        | {"peak_mb": max(figure(line, "memory/peak_mb", folder / TIMINGS) for line in timings)},
        "seconds": {key.removeprefix("seconds/"): total(timings, key, folder / TIMINGS) for key in sorted(phases)},
        "tokens": {key.removeprefix("tokens/"): total(metrics, key, folder / METRICS) for key in sorted(purposes)},
        **{key: environment.get(key) for key in ("device", "num_threads", "commit")},
    }


def read_recipe(folder: Path) -> dict[str, Any]:
    for name in ("recipe.toml", "environment.json", METRICS, TIMINGS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a run ({name} is missing)")
    recipe = read_toml(folder / "recipe.toml")
    for key, kind in (("name", str), ("seed", int)):
        if not isinstance(recipe.get(key), kind):
            raise UserError(f"{folder / 'recipe.toml'}: {key} is missing or no {kind.__name__}")
    return recipe


def read_finished(folder: Path) -> dict[str, Any]:
    """result.json of a run that has done all its iterations."""
    path = folder / "result.json"
    result = read_json(path) if path.exists() else {}
    if result.get("finished") is not True:
        command = "sft" if "sft" in read_toml(folder / "recipe.toml") else "train"
        raise UserError(
            f"{folder}: this run is not finished; finish it with "
            f"`vineppo {command} {folder / 'recipe.toml'} --out {folder} --resume`, or leave it out"
        )
    figure(result, "pass@1", path)
    return result


def read_metrics_and_timings(folder: Path, result: Mapping[str, Any]) -> tuple[list[Line], list[Line]]:
    """Metrics and timings, a line each for the iterations 1, 2, .. up to the one that the result is of."""
    last = result.get("iteration")
    both = []
    for name in (METRICS, TIMINGS):
        lines = read_lines(folder / name)
        for number, line in enumerate(lines, 1):
            if line.get("iteration") != number:
                raise UserError(f"{folder / name}:{number}: iteration is {line.get('iteration')!r}, not {number}")
        if not lines or last not in (None, len(lines)):
            raise UserError(f"{folder / name}: ends after line {len(lines)}, but the run has {last} iterations")
        both.append(lines)
    metrics, timings = both
    if len(metrics) != len(timings):
        raise UserError(f"{folder}: {METRICS} has {len(metrics)} lines, {TIMINGS} {len(timings)}")
    return metrics, timings


def section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, Mapping) else {}


def starts_from(recipe: Mapping[str, Any], start: Path) -> bool:
    """A run's own recipe names the checkpoint that it began with."""
    name = section(recipe, "model").get("name")
    if not isinstance(name, str):
        return False
    source, run = Path(name).resolve(), start.resolve()
    return source == run or run in source.parents  # the run, or a checkpoint of it


def read_points(
    folder: Path, metrics: Sequence[Line], timings: Sequence[Line], initial: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """A point per evaluation. Evaluation and checkpoints count neither as seconds nor as tokens."""
    totals = dict.fromkeys(AXES, 0.0)
    rewards: list[float] = []
    if initial is not None:
        yield {**totals, "accuracy": initial["pass@1"], "train_accuracy": None, "kl": 0.0}
    for number, (line, seconds) in enumerate(zip(metrics, timings, strict=True), 1):
        at, at_seconds = f"{folder / METRICS}:{number}", f"{folder / TIMINGS}:{number}"
        totals["iteration"] = number
        totals["steps"] += figure(line, "optim/num_steps", at, default=0)
        totals["rollouts"] += figure(line, "rollouts/num", at, default=0)
        generated = [key for key in line if key.startswith("tokens/") and key != "tokens/eval"]
        totals["tokens"] += sum(figure(line, key, at) for key in generated)
        phases = [key for key in seconds if key.startswith("seconds/") and key not in NOT_TRAINING]
        totals["seconds"] += sum(figure(seconds, key, at_seconds) for key in phases)
        rewards += [figure(line, "reward/mean", at)] if "reward/mean" in line else []
        if "eval/pass@1" in line:
            yield {
                **totals,
                "accuracy": figure(line, "eval/pass@1", at),
                "train_accuracy": fmean(rewards) if rewards else None,
                # null where it was not finite
                "kl": None if line.get("eval/kl_reference") is None else figure(line, "eval/kl_reference", at),
            }
            rewards = []


def figure(line: Line, key: str, place: object, *, default: float | None = None) -> float:
    value = line.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        raise UserError(f"{place}: {key} is {value!r}, not a finite number")
    return value


def total(lines: Sequence[Line], key: str, path: Path) -> float:
    return sum(figure(line, key, f"{path}:{number}", default=0) for number, line in enumerate(lines, 1))


def check_methods(recipes: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """(where it is, recipe) of all runs: no method may have a seed twice, or runs that differ in more than the seed."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    seen: dict[tuple[str, int], str] = {}
    for place, recipe in recipes:
        method, seed = recipe["name"], recipe["seed"]
        if (method, seed) in seen:
            raise UserError(
                f"{seen[method, seed]} and {place}: both are {method} with seed {seed}; "
                "a seed counts once, leave one of them out"
            )
        seen[method, seed] = place
        mine = {key: value for key, value in flatten(recipe).items() if not key.startswith(NOT_COMPARED)}
        other, theirs = first.setdefault(method, (place, mine))
        if differing := differences(theirs, mine):
            raise UserError(
                f"{other} and {place}: both are called {method}, but {described(differing, theirs, mine)}; "
                "give one of the recipes another name"
            )


def doubts(recipes: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes methods in one table hard to compare; each is a sentence."""
    found = []
    shared = [
        {
            key: value
            for key, value in flatten(recipe).items()
            if (key.startswith(SHARED) and key not in SPARSE) or key.startswith("model.")
        }
        for recipe in recipes
    ]
    for recipe, mine in zip(recipes[1:], shared[1:], strict=True):
        if differing := differences(shared[0], mine):
            line = f"{recipes[0]['name']} and {recipe['name']}: {described(differing, shared[0], mine)}."
            found += [line] if line not in found else []
    commits = sorted({str(run["commit"]) for run in runs})
    if len(commits) > 1:
        found.append(f"The runs are of different commits: {', '.join(commits)}.")
    if dirty := [commit for commit in commits if commit.endswith("-dirty")]:
        found.append(f"Runs were made by code that is in no commit: {', '.join(dirty)}.")
    for key, name in (("device", "devices"), ("num_threads", "numbers of threads")):
        values = sorted({str(run[key]) for run in runs})
        if len(values) > 1:
            found.append(
                f"The runs are of different {name}, so seconds and memory do not compare: {', '.join(values)}."
            )
    return found


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def described(keys: Sequence[str], left: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} = {left.get(key)!r} and {right.get(key)!r}" for key in keys)
