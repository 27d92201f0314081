"""Finished runs side by side: accuracy against iterations, steps, rollouts, tokens and seconds, KL, memory and time.

An interval is Student's over seeds: it says how far another set of seeds may lie, not how well the test problems stand
for others (result.json has that). Reads run folders only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vineppo.compare.finished_runs import AXES, check_methods, doubts, read_recipe, read_run
from vineppo.intervals import interval


def compare_runs(folders: Sequence[Path], *, start: Path | None = None) -> dict[str, Any]:
    """`start` is the run whose policy they start from; its accuracy is the first point of the curves of those that do.

    Raises UserError where a run is unfinished or damaged, where a method has a seed twice, and where runs of one
    method differ in more than their seeds. What else makes them hard to compare is among the `warnings`.
    """
    recipes = [read_recipe(folder) for folder in folders]
    check_methods([(str(folder), recipe) for folder, recipe in zip(folders, recipes, strict=True)])
    runs = [read_run(folder, start) for folder in folders]
    methods: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        methods.setdefault(run["method"], []).append(run)
    peaks = {method: fmean(run["peak"] for run in method_runs) for method, method_runs in methods.items()}
    ours, baseline = (named_first(runs, credit) for credit in ("vineppo", "ppo"))
    target = peaks.get(baseline)
    level = min(peaks.values())
    initial = [run["points"][0]["accuracy"] for run in runs if run["points"][0]["iteration"] == 0]
    return {
        "warnings": doubts(recipes, runs),
        "initial_accuracy": initial[0] if initial else None,
        "equal_accuracy": level,
        "target": target,
        "methods": {
            method: summarize_method(method_runs, target=target, level=level) for method, method_runs in methods.items()
        },
        "differences": {
            method: paired(methods[ours], method_runs)
            for method, method_runs in methods.items()
            if ours in methods and method != ours
        },
        "runs": runs,
    }


def named_first(runs: Sequence[Mapping[str, Any]], credit: str) -> str:
    """The method (a recipe's name) that is first to use this credit estimator; "" if none does."""
    return next((run["method"] for run in runs if run["credit"] == credit), "")


def summarize_method(runs: Sequence[Mapping[str, Any]], *, target: float | None, level: float) -> dict[str, Any]:
    """One method over its seeds."""
    num_iterations = fmean(run["num_iterations"] for run in runs)
    return {
        "seeds": [run["seed"] for run in runs],
        "num_evaluations": min(sum(point["iteration"] > 0 for point in run["points"]) for run in runs),
        "peak": interval([run["peak"] for run in runs]),
        "final": interval([run["final"] for run in runs]),
        "curve": [
            {axis: fmean(point[axis] for point in column) for axis in AXES}
            | {"accuracy": interval([point["accuracy"] for point in column])}
            | {key: mean_or_none(point[key] for point in column) for key in ("train_accuracy", "kl")}
            for column in joined(runs)
        ],
        "to_target": to_target(runs, target) if target is not None else None,
        "kl_at_equal_accuracy": interval([kl for run in runs if (kl := kl_at(run["points"], level)) is not None]),
        "memory_mb": mean_of([run["memory_mb"] for run in runs]),
        "seconds_per_iteration": {
            phase: seconds / num_iterations for phase, seconds in mean_of([run["seconds"] for run in runs]).items()
        },
        "tokens_per_iteration": {
            purpose: tokens / num_iterations for purpose, tokens in mean_of([run["tokens"] for run in runs]).items()
        },
    }


def joined(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The points at which all runs were evaluated, one of each run.

    The same iteration, or for methods that count optimizer steps the same epoch: seeds have epochs of other lengths.
    """
    if any(run["stepwise"] for run in runs):
        return [list(column) for column in zip(*(run["points"] for run in runs), strict=False)]
    by_iteration = [{point["iteration"]: point for point in run["points"]} for run in runs]
    shared = [i for i in by_iteration[0] if all(i in points for points in by_iteration)]
    return [[points[i] for points in by_iteration] for i in shared]


def to_target(runs: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """What it takes until an evaluation first reaches `target`: medians over the seeds that do, and how many do."""
    reached = [next((p for p in run["points"] if p["accuracy"] >= target), None) for run in runs]
    found = [point for point in reached if point is not None]
    return {"num_reached": len(found), "num_seeds": len(runs)} | {
        axis: median(point[axis] for point in found) if found else None for axis in AXES
    }


def kl_at(points: Sequence[Mapping[str, Any]], level: float) -> float | None:
    """KL to the reference where accuracy first rises to `level`, on the line between the two evaluations around it."""
    for before, after in pairwise(points):
        if after["accuracy"] >= level and before["kl"] is not None and after["kl"] is not None:
            if before["accuracy"] >= level:
                return before["kl"]
            share = (level - before["accuracy"]) / (after["accuracy"] - before["accuracy"])
            return before["kl"] + share * (after["kl"] - before["kl"])
    return None


def paired(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """VinePPO less another method, seed by seed."""
    by_seed = {run["seed"]: run for run in theirs}
    pairs = [(run, by_seed[run["seed"]]) for run in ours if run["seed"] in by_seed]
    return {key: interval([a[key] - b[key] for a, b in pairs]) for key in ("peak", "final")}


def mean_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def mean_of(trees: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = sorted({key for tree in trees for key in tree})
    return {key: fmean(tree.get(key, 0.0) for tree in trees) for key in keys}
