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
from vineppo.machine.terminal import printable

RUN_COLUMNS = ("folder", "method", "seed", "peak", "final", "commit", "device", "num_threads")
PER_STEP = "DPO+ and SFT: an iteration is an optimizer step"


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
    peaks = {method: fmean(run["peak"] for run in of_method) for method, of_method in methods.items()}
    ours, baseline = (named_first(runs, credit) for credit in ("vineppo", "ppo"))
    target = peaks.get(baseline)
    level = min(peaks.values())
    initial = [run["points"][0]["accuracy"] for run in runs if run["points"][0]["iteration"] == 0]
    return {
        "warnings": doubts(recipes, runs),
        "initial_accuracy": initial[0] if initial else None,
        "equal_accuracy": level,
        "target": target,
        "methods": {method: summarize(of_method, target=target, level=level) for method, of_method in methods.items()},
        "differences": {
            method: paired(methods[ours], of_method)
            for method, of_method in methods.items()
            if ours in methods and method != ours
        },
        "runs": runs,
    }


def named_first(runs: Sequence[Mapping[str, Any]], credit: str) -> str:
    """The method (a recipe's name) that is first to use this credit estimator; "" if none does."""
    return next((run["method"] for run in runs if run["credit"] == credit), "")


def summarize(runs: Sequence[Mapping[str, Any]], *, target: float | None, level: float) -> dict[str, Any]:
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


def to_markdown(comparison: Mapping[str, Any]) -> str:
    methods: Mapping[str, Any] = comparison["methods"]
    runs = comparison["runs"]
    ours = named_first(runs, "vineppo")
    sections = [
        ("Test accuracy", accuracy_table(methods)),
        (f"{ours} less each method, seed by seed", difference_table(comparison["differences"])),
        (
            f"To PPO's peak, {number(comparison['target'])}: medians over the seeds that reach it ({PER_STEP})",
            target_table(methods),
        ),
        (f"Curves, means over seeds ({PER_STEP})", curve_table(methods)),
        (f"KL to the reference at accuracy {number(comparison['equal_accuracy'])}", table(
            ["method", "KL, nats per response", "seeds that reach it"],
            [[name, show(m["kl_at_equal_accuracy"]), m["kl_at_equal_accuracy"]["n"]] for name, m in methods.items()],
        )),
        ("Memory, MiB", breakdown(methods, "memory_mb")),
        (f"Seconds per iteration ({PER_STEP})", breakdown(methods, "seconds_per_iteration")),
        (f"Generated tokens per iteration ({PER_STEP})", breakdown(methods, "tokens_per_iteration")),
        ("Runs", table(RUN_COLUMNS, [[run[column] for column in RUN_COLUMNS] for run in runs])),
    ]  # fmt: skip
    warnings = "".join(f"**Note:** {warning}\n\n" for warning in comparison["warnings"])
    return warnings + "\n".join(f"## {title}\n\n{text}\n" for title, text in sections if text)


def accuracy_table(methods: Mapping[str, Any]) -> str:
    """A peak is the best of a run's evaluations, so their number stands beside it."""
    rows = [
        [name, show(m["peak"]), show(m["final"]), len(m["seeds"]), m["num_evaluations"]] for name, m in methods.items()
    ]
    over = interval_over([m["peak"] for m in methods.values()])
    return table(["method", f"peak{over}", f"last{over}", "seeds", "evaluations"], rows)


def difference_table(differences: Mapping[str, Any]) -> str:
    rows = [
        [name, show(row["peak"]), show(row["final"]), row["peak"]["n"]]
        for name, row in differences.items()
        if row["peak"]["n"]
    ]
    over = interval_over([row["peak"] for row in differences.values()])
    return table(["method", f"peak{over}", f"last{over}", "seeds in common"], rows)


def interval_over(values: Sequence[Mapping[str, Any]]) -> str:
    """What the header says of intervals: nothing where one seed has none."""
    return " [95 % interval over seeds]" if any(value["ci95"] for value in values) else ""


def target_table(methods: Mapping[str, Any]) -> str:
    rows = []
    for name, method in methods.items():
        if reach := method["to_target"]:
            share = f"{reach['num_reached']}/{reach['num_seeds']}"
            rows.append([name, share, *(number(reach[axis]) for axis in AXES)])
    return table(["method", "seeds that do", *AXES], rows)


def curve_table(methods: Mapping[str, Any]) -> str:
    header = ["method", *AXES, "test accuracy", "train accuracy", "KL"]
    return table(
        header,
        [
            [
                name,
                *(number(point[axis]) for axis in AXES),
                show(point["accuracy"]),
                number(point["train_accuracy"]),
                number(point["kl"]),
            ]
            for name, method in methods.items()
            for point in method["curve"]
        ],
    )


def breakdown(methods: Mapping[str, Any], key: str) -> str:
    columns = sorted({column for method in methods.values() for column in method[key]})
    rows = [[name, *(number(m[key].get(column, 0.0)) for column in columns)] for name, m in methods.items()]
    return table(["method", *columns], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(value: object) -> str:
    """Names are the folder's and the recipe's owner's, who may write anything."""
    return printable("-" if value is None else str(value)).replace("\n", " ").replace("|", "\\|")


def show(value: Mapping[str, Any]) -> str:
    if value["ci95"] is None:
        return number(value["mean"])
    low, high = value["ci95"]
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
