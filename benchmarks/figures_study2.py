"""Tables of the second study, from benchmarks/results/study2: accuracy at equal tokens and at equal seconds.

python benchmarks/figures.py --write
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from figures import ci, load
from figures_exact import table
from study2 import NUM_ITERATIONS, TASKS

from vineppo.intervals import interval

ARMS = {
    "vine_critic": "`vine_critic`",
    "vine_critic-1": "`vine_critic`, K = 1",
    "tree": "`tree`, K = 1, every 2nd fork",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "ppo": "PPO",
    "vineppo-3": "VinePPO, K = 3",
    "vineppo-9": "VinePPO, K = 9",
}
Point = tuple[float, float]  # what was spent, accuracy


def accuracies(task: str, arm: str, budget: str) -> dict[int, float]:
    """Of each seed, when the budget is spent."""
    end = spent(task, budget)
    return {run["seed"]: at(curve(task, arm, run, budget), end) for run in runs(task, arm)}


def runs(task: str, arm: str) -> list[dict[str, Any]]:
    found = load("study2/report.json")
    return [run for key, run in sorted(found.items()) if key.startswith(f"{task}/report/{arm}-seed")]


def spent(task: str, budget: str) -> float:
    """What GRPO takes in all: tokens by its own count, seconds by the pilot."""
    if budget == "seconds":
        return NUM_ITERATIONS * load("study2/pilot.json")[f"{task}/grpo"]["seconds"]
    totals = [at([(p["iteration"], p["tokens"]) for p in run["points"]], NUM_ITERATIONS) for run in runs(task, "grpo")]
    return sum(totals) / len(totals)


def curve(task: str, arm: str, run: dict[str, Any], budget: str) -> list[Point]:
    """From the policy that all start from."""
    per_iteration = load("study2/pilot.json")[f"{task}/{arm}"]["seconds"]
    points = [(0.0, load("study2/start.json")[task]["pass@1"])]
    for point in run["points"]:
        x = point["tokens"] if budget == "tokens" else point["iteration"] * per_iteration
        points.append((x, point["accuracy"]))
    return points


def at(points: Sequence[Point], x: float) -> float:
    """On the straight line between two points; the last one's where x lies behind it."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def less(task: str, arm: str, other: str, budget: str) -> dict[str, Any]:
    """Seed by seed."""
    ours, theirs = accuracies(task, arm, budget), accuracies(task, other, budget)
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def by_budget(budget: str) -> str:
    heads = [column for task in TASKS for column in (f"`{task}`", "less RLOO")]
    rows = []
    for arm, called in ARMS.items():
        cells = []
        for task in TASKS:
            cells.append(ci(interval(list(accuracies(task, arm, budget).values()))))
            cells.append("" if arm == "rloo" else ci(less(task, arm, "rloo", budget)))
        rows.append([called, *cells])
    return table(["arm", *heads], rows)


def settings() -> str:
    """Rates, and what an iteration samples and takes."""
    chosen, pilot = load("study2/chosen.json"), load("study2/pilot.json")
    heads = [column for task in TASKS for column in (f"`{task}`: tokens", "seconds")]
    rows = []
    for arm, called in ARMS.items():
        costs = [pilot[f"{task}/{arm}"] for task in TASKS]
        cells = [cell for cost in costs for cell in (f"{cost['tokens']:,.0f}", f"{cost['seconds']:.2f}")]
        rows.append([called, f"{chosen[arm]:g}", *cells])
    return table(["arm", "rate", *heads], rows)
