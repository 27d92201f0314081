"""What needs no model: runs side by side, from what they have written (paper, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vineppo.analysis.result import Result
from vineppo.compare.comparison import compare_runs
from vineppo.report.comparison import shown_charts, shown_tables


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
        tables=("accuracy", "to_target", "memory", "seconds", "tokens", "curves"),
        charts=("curves", "memory", "seconds"),
    )


def generalisation(runs: Sequence[Path]) -> Result:
    text = (
        "Test accuracy against the mean reward of training rollouts since the evaluation before. A method that is "
        "further up at the same training reward generalises better; on the dashed line both are equal."
    )
    return choose(
        "generalisation", "Train and test accuracy", text, runs, tables=("curves",), charts=("train_and_test",)
    )


def kl(runs: Sequence[Path]) -> Result:
    text = (
        "How far from its reference policy (nats per response) each method has moved when its test accuracy first "
        "rises to a level that all of them reach."
    )
    return choose("kl", "KL to the reference", text, runs, tables=("kl", "curves"), charts=("kl",))


def choose(
    kind: str, title: str, text: str, runs: Sequence[Path], *, tables: Sequence[str], charts: Sequence[str]
) -> Result:
    """Of a comparison's tables and charts those with these keys."""
    comparison = compare_runs(runs)
    drawn = {slug(name): chart for name, chart in shown_charts(comparison, charts).items()}
    return Result(kind, title, text, shown_tables(comparison, tables), drawn)


def slug(name: str) -> str:
    return name.lower().replace(" ", "_")
