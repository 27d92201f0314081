"""The table and the figure of docs/credit.md, from benchmarks/results/exact.json.

python benchmarks/figures.py --write, and python benchmarks/figures_credit.py for the figure
"""

from __future__ import annotations

import math
from typing import Any

from figures import ROOT, load, short
from figures_exact import FILE, ratio, row_of, table

from vineppo.report.charts import dots, save_figure

SHOWN = {
    "VinePPO K=1": "`vineppo`, K = 1",
    "VinePPO K=9": "`vineppo`, K = 9",
    "vines": "`vines`",
    "vines, siblings alone": "`vines`, siblings alone",
    "Tree K=0: RLOO, fitted": "`tree`, no vines: RLOO with a fitted baseline",
    "Tree K=1, every 2nd": "`tree`, K = 1, every 2nd state",
    "Tree K=1, first segments": "`tree`, K = 1, first segments trained",
    "Tree 8 x 8": "`tree`, 8 rollouts x 8 continuations",
    "critic": "`vine_critic`",
    "critic, vines K=1": "`vine_critic`, K = 1",
    "critic off by 0.2": "`vine_critic`, a critic that is off by .2 everywhere",
    "critic upside down": "`vine_critic`, a critic that says 1 - Q",
    "potential, exact model": "`potential`, an exact reward model",
    "exact Q, best baseline": "a bound: all values known, for nothing",
}
"""Rows of `vineppo exact`, and what a practitioner calls them."""
FIGURE = ROOT / "docs" / "credit.svg"


def by_world() -> str:
    worlds = load(FILE)["worlds"]
    names = [name for name in SHOWN if any(row_of(world, name) for world in worlds)]
    return table(
        ["estimator", *(world["name"] for world in worlds)],
        ([SHOWN[name], *(cell(row_of(world, name)) for world in worlds)] for name in names),
    )


def cell(row: dict[str, Any] | None) -> str:
    return ratio(row["variance_at_equal_sampled"]).partition(" ")[0] if row else ""


def by_cost() -> str:
    """Seconds of an iteration, tokens, and what the critic holds. Critics ran again, beside GRPO and RLOO, when they read
    hidden states once."""
    critics = load("estimators-critic-cpu.json")["estimators"]
    rows = load("estimators-cpu.json")["estimators"]
    rows |= {name: row for name, row in critics.items() if name.startswith("vine_critic")}
    return table(
        ["estimator", "seconds", "of GRPO's", "sampled tokens", "critic, MiB"],
        (
            [
                f"`{name}`",
                "{median:.2f} [{min:.2f}, {max:.2f}]".format(**row["seconds"]["total"]),
                short(row["over_grpo"], 2),
                f"{sum(row['tokens'].values()):,.0f}",
                f"{critic_mb(row['memory_mb']):.1f}",
            ]
            for name, row in rows.items()
        ),
    )


def critic_mb(memory: dict[str, float]) -> float:
    return sum(mb for name, mb in memory.items() if name.startswith("critic"))


def save_chart() -> None:
    rows = [
        {
            "estimator": called.replace("`", ""),
            "world": world["name"],
            "variance": value,
            "low": value / math.exp(2 * se / value),
            "high": value * math.exp(2 * se / value),
        }
        for name, called in SHOWN.items()
        for world in load(FILE)["worlds"]
        if (row := row_of(world, name))
        for value, se in [row["variance_at_equal_sampled"].values()]
    ]
    title = "Variance of the policy gradient at equal sampled tokens, RLOO = 1"
    save_figure(dots(title, rows, x="variance", y="estimator", by="world"), FIGURE)


if __name__ == "__main__":
    save_chart()
