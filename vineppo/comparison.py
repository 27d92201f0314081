"""Finished runs side by side: accuracy against iterations, steps, rollouts, tokens and seconds, KL, memory and time.

An interval is Student's over seeds: it says how far another set of seeds may lie, not how well the test problems stand
for others (result.json has that). Reads run folders only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from vineppo.config import read_toml
from vineppo.metrics import METRICS, TIMINGS
from vineppo.types import UserError

# Two-sided 95 % quantiles of Student's t for 1, 2, .. degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
AXES = ("iteration", "steps", "rollouts", "tokens", "seconds")
NOT_TRAINING = {"seconds/evaluate", "seconds/checkpoint"}


def compare_runs(folders: Sequence[Path], *, start: Path | None = None) -> dict[str, Any]:
    """`start` is the run whose policy all of them start from; its accuracy is the first point of every curve."""
    initial = json.loads((start / "result.json").read_text())["pass@1"] if start else None
    runs = [read_run(folder, initial) for folder in folders]
    methods: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        methods.setdefault(run["method"], []).append(run)
    peaks = {method: fmean(run["peak"] for run in of_method) for method, of_method in methods.items()}
    ours, baseline = (named_first(runs, credit) for credit in ("vineppo", "ppo"))
    target = peaks.get(baseline)
    level = min(peaks.values())
    return {
        "initial_accuracy": initial,
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


def read_run(folder: Path, initial: float | None) -> dict[str, Any]:
    """One run: its evaluations as points on every axis, its memory, and its seconds per iteration by phase."""
    for name in ("recipe.toml", "environment.json", METRICS, TIMINGS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a run ({name} is missing)")
    recipe = read_toml(folder / "recipe.toml")
    metrics, timings = (read_lines(folder / name) for name in (METRICS, TIMINGS))
    environment = json.loads((folder / "environment.json").read_text())
    points = [point | {"seed": recipe["seed"]} for point in read_points(metrics, timings, initial)]
    if not points:
        raise UserError(f"{folder}: this run has no evaluation yet")
    accuracies = [point["accuracy"] for point in points if point["iteration"] > 0]
    last = metrics[-1]
    phases = sorted({key for line in timings for key in line if key.startswith("seconds/")})
    return {
        "folder": folder.name,
        "method": recipe["name"],
        "credit": recipe.get("credit", {}).get("name"),
        "seed": recipe["seed"],
        "num_iterations": len(metrics),
        "points": points,
        "peak": max(accuracies),
        "final": accuracies[-1],
        "memory_mb": {key.removeprefix("memory/"): last[key] for key in last if key.startswith("memory/")}
        | {"peak_mb": max(line["memory/peak_mb"] for line in timings)},
        "seconds": {key.removeprefix("seconds/"): sum(line.get(key, 0.0) for line in timings) for key in phases},
        "tokens": {
            key.removeprefix("tokens/"): sum(line.get(key, 0) for line in metrics)
            for key in sorted({key for line in metrics for key in line if key.startswith("tokens/")})
        },
        "device": environment["device"],
        "num_threads": environment["num_threads"],
        "commit": environment["commit"],
    }


def read_points(
    metrics: Sequence[Mapping[str, Any]], timings: Sequence[Mapping[str, Any]], initial: float | None
) -> Iterable[dict[str, Any]]:
    """A point per evaluation. Evaluation and checkpoints count neither as seconds nor as tokens."""
    total = dict.fromkeys(AXES, 0.0)
    rewards: list[float] = []
    if initial is not None:
        yield {**total, "accuracy": initial, "train_accuracy": None, "kl": 0.0}
    for line, seconds in zip(metrics, timings, strict=True):
        total["iteration"] = line["iteration"]
        total["steps"] += line.get("optim/num_steps", 0)
        total["rollouts"] += line.get("rollouts/num", 0)
        total["tokens"] += sum(v for k, v in line.items() if k.startswith("tokens/") and k != "tokens/eval")
        total["seconds"] += sum(v for k, v in seconds.items() if k.startswith("seconds/") and k not in NOT_TRAINING)
        rewards += [line["reward/mean"]] if "reward/mean" in line else []
        if "eval/pass@1" in line:
            train = fmean(rewards) if rewards else None
            kl = line.get("eval/kl_reference")
            yield {**total, "accuracy": line["eval/pass@1"], "train_accuracy": train, "kl": kl}
            rewards = []


def summarize(runs: Sequence[Mapping[str, Any]], *, target: float | None, level: float) -> dict[str, Any]:
    """One method over its seeds."""
    num_points = min(len(run["points"]) for run in runs)
    columns = [[run["points"][i] for run in runs] for i in range(num_points)]
    num_iterations = fmean(run["num_iterations"] for run in runs)
    return {
        "seeds": [run["seed"] for run in runs],
        "peak": interval([run["peak"] for run in runs]),
        "final": interval([run["final"] for run in runs]),
        "curve": [
            {axis: fmean(point[axis] for point in column) for axis in AXES}
            | {"accuracy": interval([point["accuracy"] for point in column])}
            | {key: mean_or_none(point[key] for point in column) for key in ("train_accuracy", "kl")}
            for column in columns
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


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval; the interval is None for fewer than two values."""
    n = len(values)
    if n < 2:
        return {"mean": values[0] if n else None, "ci95": None, "n": n}
    half = (T_95[n - 2] if n - 2 < len(T_95) else 1.96) * stdev(values) / math.sqrt(n)
    mean = fmean(values)
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": n}


def mean_or_none(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def mean_of(trees: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = sorted({key for tree in trees for key in tree})
    return {key: fmean(tree.get(key, 0.0) for tree in trees) for key in keys}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def to_markdown(comparison: Mapping[str, Any]) -> str:
    methods: Mapping[str, Any] = comparison["methods"]
    sections = [
        ("Test accuracy", accuracy_table(methods)),
        ("VinePPO less each method, seed by seed", table(["method", "peak", "final"], [
            [name, show(row["peak"]), show(row["final"])] for name, row in comparison["differences"].items()
        ])),
        (f"To PPO's peak, {number(comparison['target'])}: medians over the seeds that reach it", target_table(methods)),
        ("Curves, means over seeds", curve_table(methods)),
        (f"KL to the reference at accuracy {number(comparison['equal_accuracy'])}", table(
            ["method", "KL, nats per response", "seeds that reach it"],
            [[name, show(m["kl_at_equal_accuracy"]), m["kl_at_equal_accuracy"]["n"]] for name, m in methods.items()],
        )),
        ("Memory, MiB", breakdown(methods, "memory_mb")),
        ("Seconds per iteration (DPO+: per optimizer step)", breakdown(methods, "seconds_per_iteration")),
        ("Generated tokens per iteration (DPO+: per optimizer step)", breakdown(methods, "tokens_per_iteration")),
    ]  # fmt: skip
    return "\n".join(f"## {title}\n\n{text}\n" for title, text in sections)


def accuracy_table(methods: Mapping[str, Any]) -> str:
    rows = [[name, show(m["peak"]), show(m["final"]), len(m["seeds"])] for name, m in methods.items()]
    return table(["method", "peak, 95 % interval over seeds", "last, 95 % interval", "seeds"], rows)


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
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def show(value: Mapping[str, Any]) -> str:
    if value["ci95"] is None:
        return number(value["mean"])
    low, high = value["ci95"]
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
