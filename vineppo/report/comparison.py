"""What is shown of a comparison (comparison.json): curves on every axis, intervals over seeds, what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vineppo.compare.tables import comparison_tables
from vineppo.machine.tables import Row
from vineppo.report.charts import Chart, bars, lines, points

AXIS_NAMES = {
    "iteration": "iteration",
    "steps": "optimizer steps",
    "rollouts": "rollouts",
    "tokens": "generated tokens",
    "seconds": "seconds",
}

PER_STEP = "(DPO+: an iteration is an optimizer step)"
TITLES = {
    "accuracy": "Test accuracy",
    "differences": "VinePPO less each method, seed by seed",
    "to_target": f"To PPO's peak, medians over the seeds that reach it {PER_STEP}",
    "kl": "KL at equal accuracy",
    "memory": "Memory, MiB",
    "seconds": f"Seconds per iteration {PER_STEP}, by phase",
    "tokens": f"Generated tokens per iteration {PER_STEP}, by purpose",
    "curves": f"Curves, means over seeds {PER_STEP}",
    "runs": "Runs",
}
"""Of the tables, in the order of the page."""
RUN_COLUMNS = ("folder", "method", "seed", "peak", "final", "device", "commit")


def comparison_section(comparison: Mapping[str, Any]) -> dict[str, Any]:
    num_runs, num_methods = len(comparison.get("runs", [])), len(comparison["methods"])
    failed = comparison.get("failed")
    drawn = "Bands and whiskers are 95 % intervals over seeds (Student's t): how far another set of seeds may lie."
    one_seed = "One seed each, so no interval: another seed may lie anywhere."
    seeds = drawn if has_intervals(comparison_tables(comparison)["accuracy"], "peak") else one_seed
    return {
        "kind": "Comparison",
        "title": "Comparison",
        "text": f"{num_runs} runs of {num_methods} methods. {seeds} "
        "A peak is the best of a run's evaluations. An iteration of DPO+ and SFT is an optimizer step.",
        "warnings": [
            *([f"Failed and not in here: {', '.join(failed)}."] if failed else []),
            *comparison.get("warnings", []),
        ],
        "charts": shown_charts(comparison),
        "tables": shown_tables(comparison),
    }


def shown_tables(comparison: Mapping[str, Any], keys: Iterable[str] = TITLES) -> dict[str, list[Row]]:
    """Title -> rows; those of these keys that have any. An interval becomes columns."""
    tables = comparison_tables(comparison)
    tables["curves"] = curve_marks(tables["curves"])
    tables["runs"] = [{column: run[column] for column in RUN_COLUMNS} for run in tables["runs"]]
    return {TITLES[key]: list(map(flat, tables[key])) for key in keys if tables[key]}


def flat(row: Row) -> Row:
    found: Row = {}
    for column, value in row.items():
        if isinstance(value, Mapping):
            low, high = value["ci95"] or (None, None)
            found |= {column: value["mean"], f"{column}, low": low, f"{column}, high": high}
        else:
            found[column] = value
    return found


def shown_charts(comparison: Mapping[str, Any], keys: Iterable[str] | None = None) -> dict[str, Chart]:
    """Name -> chart, of these keys or of all."""
    charts = comparison_charts(comparison)
    return {name: chart for key in keys or charts for name, chart in charts[key].items()}


def comparison_charts(comparison: Mapping[str, Any]) -> dict[str, dict[str, Chart]]:
    """Key -> its charts by name; none where there is nothing to draw."""
    tables = comparison_tables(comparison)
    accuracy, marks, level = tables["accuracy"], curve_marks(tables["curves"]), comparison.get("equal_accuracy")
    memory = [{"method": row["method"], "MiB": row.get("peak_mb")} for row in tables["memory"]]
    return {
        "peak": {"Peak accuracy": interval_bars("Peak test accuracy", accuracy, "peak", unit="accuracy")},
        "curves": accuracy_curves(marks, ci=has_intervals(accuracy, "peak")),
        "train_and_test": train_and_test(marks),
        "kl": {"KL at equal accuracy": kl_bars(tables["kl"], level)} if level is not None else {},
        "memory": {"Peak memory": bars("Peak memory", memory, x="method", y="MiB")},
        "seconds": part_bars("Seconds per iteration", tables["seconds"], unit="seconds"),
        "tokens": part_bars("Generated tokens per iteration", tables["tokens"], unit="tokens"),
    }


def curve_marks(rows: Sequence[Row]) -> list[Row]:
    """A mark has `low` and `high`; one seed has no interval, and then they are the value itself."""
    return [
        {column: row[column] for column in ("method", *AXIS_NAMES)}
        | {"accuracy": row["accuracy"]["mean"], **low_high(row["accuracy"])}
        | {column: row[column] for column in ("train accuracy", "KL")}
        for row in rows
    ]


def accuracy_curves(marks: Sequence[Row], *, ci: bool) -> dict[str, Chart]:
    charts = {}
    for axis, name in AXIS_NAMES.items():
        title = f"Test accuracy by {name}" + (f" {PER_STEP}" if axis == "iteration" else "")
        rows = [mark | {name: mark[axis]} for mark in marks]
        charts[f"Accuracy by {name}"] = lines(title, rows, x=name, y="accuracy", by="method", ci=ci)
    return charts


def train_and_test(marks: Sequence[Row]) -> dict[str, Chart]:
    seen = [mark | {"test accuracy": mark["accuracy"]} for mark in marks if mark["train accuracy"] is not None]
    if not seen:
        return {}
    ends = [mark[column] for mark in seen for column in ("train accuracy", "test accuracy")]
    chart = points(
        "Test accuracy against training reward",
        seen,
        x="train accuracy",
        y="test accuracy",
        by="method",
        diagonal=(min(ends), max(ends)),
    )
    return {"Train and test accuracy": chart}


def kl_bars(rows: Sequence[Row], level: float) -> Chart:
    return interval_bars(f"KL to the reference at accuracy {level:.3f}", rows, "KL", unit="nats per response")


def interval_bars(title: str, rows: Sequence[Row], column: str, *, unit: str) -> Chart:
    marks = [
        {"method": row["method"], unit: row[column]["mean"], **low_high(row[column])}
        for row in rows
        if row[column]["mean"] is not None
    ]
    return bars(title, marks, x="method", y=unit, ci=has_intervals(rows, column))


def part_bars(title: str, rows: Sequence[Row], *, unit: str) -> dict[str, Chart]:
    marks = [
        {"method": row["method"], unit: value, "part": part}
        for row in rows
        for part, value in row.items()
        if part != "method" and value is not None
    ]
    return {title: bars(f"{title} {PER_STEP}", marks, x="method", y=unit, by="part")}


def has_intervals(rows: Sequence[Row], column: str) -> bool:
    return any(row[column]["ci95"] is not None for row in rows)


def low_high(interval: Mapping[str, Any]) -> dict[str, float | None]:
    low, high = interval["ci95"] or (interval["mean"], interval["mean"])
    return {"low": low, "high": high}
