"""What needs no model: runs side by side, from what they have written (paper, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vineppo.analysis.result import Result
from vineppo.compare.tables import compare_runs
from vineppo.report.comparison import comparison_charts, comparison_tables


def efficiency(runs: Sequence[Path]) -> Result:
    text = (
        "Test accuracy against optimizer steps, rollouts, generated tokens and seconds, and what each method holds in "
        "memory. Means over seeds with Student's 95 % interval."
    )
    return choose(
        "efficiency",
        "Efficiency",
        text,
        runs,
        tables=("Test accuracy", "To PPO's peak", "Memory", "Seconds", "Generated tokens", "Curves"),
        charts=("Accuracy by", "Peak memory", "Seconds"),
    )


def generalisation(runs: Sequence[Path]) -> Result:
    text = (
        "Test accuracy against the mean reward of training rollouts since the evaluation before. A method that is "
        "further up at the same training reward generalises better; on the dashed line both are equal."
    )
    return choose("generalisation", "Train and test accuracy", text, runs, tables=("Curves",), charts=("Train and",))


def kl(runs: Sequence[Path]) -> Result:
    text = (
        "How far from its reference policy (nats per response) each method has moved when its test accuracy first "
        "rises to a level that all of them reach."
    )
    return choose("kl", "KL to the reference", text, runs, tables=("KL at", "Curves"), charts=("KL at",))


def choose(
    kind: str, title: str, text: str, runs: Sequence[Path], *, tables: Sequence[str], charts: Sequence[str]
) -> Result:
    """Of a comparison's tables and charts those whose names begin so."""
    comparison = compare_runs(runs)
    every_table, every_chart = comparison_tables(comparison), comparison_charts(comparison)
    return Result(
        kind,
        title,
        text,
        {name: rows for name, rows in every_table.items() if name.startswith(tuple(tables))},
        {slug(name): chart for name, chart in every_chart.items() if name.startswith(tuple(charts))},
    )


def slug(name: str) -> str:
    return name.lower().replace(" ", "_")
