"""The tables of a comparison: its numbers as rows, which the page and the analyses show too; and all in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vineppo.compare.comparison import named_first
from vineppo.compare.finished_runs import AXES
from vineppo.machine.tables import Row, markdown, number

PER_STEP = "DPO+ and SFT: an iteration is an optimizer step"
RUN_COLUMNS = ("folder", "method", "seed", "peak", "final", "commit", "device", "num_threads")


def comparison_tables(comparison: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Key -> rows; no rows where the comparison has nothing to say.

    A cell may also be an interval, as `vineppo.intervals.interval` gives it. A peak is the best of a run's
    evaluations, so their number stands beside it. Of runs everything is there, for whoever shows them to choose from.
    """
    methods: Mapping[str, Any] = comparison["methods"]
    return {
        "accuracy": [
            {"method": name, "peak": m["peak"], "last": m["final"], "seeds": len(m["seeds"])}
            | ({"evaluations": m["num_evaluations"]} if "num_evaluations" in m else {})
            for name, m in methods.items()
        ],
        "differences": [
            {"method": name, "peak": difference["peak"], "last": difference["final"]}
            for name, difference in comparison.get("differences", {}).items()
        ],
        "to_target": [{"method": name, **m["to_target"]} for name, m in methods.items() if m["to_target"]],
        "curves": [
            {"method": name, **{axis: point[axis] for axis in AXES}, "accuracy": point["accuracy"]}
            | {"train accuracy": point["train_accuracy"], "KL": point["kl"]}
            for name, m in methods.items()
            for point in m["curve"]
        ],
        "kl": [
            {"method": name, "KL": (kl := m["kl_at_equal_accuracy"]), "seeds that reach it": kl["n"]}
            for name, m in methods.items()
        ],
        "memory": breakdown(methods, "memory_mb"),
        "seconds": breakdown(methods, "seconds_per_iteration"),
        "tokens": breakdown(methods, "tokens_per_iteration"),
        "runs": list(comparison.get("runs", [])),
    }


def breakdown(methods: Mapping[str, Any], key: str) -> list[Row]:
    """A column for every part that any method has; None where a method has none of it."""
    parts = sorted({part for m in methods.values() for part in m[key]})
    return [{"method": name, **{part: m[key].get(part) for part in parts}} for name, m in methods.items()]


def to_markdown(comparison: Mapping[str, Any]) -> str:
    titles = {
        "accuracy": "Test accuracy",
        "differences": f"{named_first(comparison['runs'], 'vineppo')} less each method, seed by seed",
        "to_target": f"To PPO's peak, {show(comparison['target'])}: medians over the seeds that reach it ({PER_STEP})",
        "curves": f"Curves, means over seeds ({PER_STEP})",
        "kl": f"KL to the reference at accuracy {show(comparison['equal_accuracy'])}",
        "memory": "Memory, MiB",
        "seconds": f"Seconds per iteration ({PER_STEP})",
        "tokens": f"Generated tokens per iteration ({PER_STEP})",
        "runs": "Runs",
    }
    tables = markdown_tables(comparison)
    warnings = "".join(f"**Note:** {warning}\n\n" for warning in comparison["warnings"])
    return warnings + "\n".join(f"## {title}\n\n{tables[key]}\n" for key, title in titles.items() if tables[key])


def markdown_tables(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Key -> its table in Markdown."""
    tables = comparison_tables(comparison)
    differences = [row | {"seeds in common": row["peak"]["n"]} for row in tables["differences"] if row["peak"]["n"]]
    reached = [
        {"method": row["method"], "seeds that do": f"{row['num_reached']}/{row['num_seeds']}"}
        | {axis: row[axis] for axis in AXES}
        for row in tables["to_target"]
    ]
    return {
        "accuracy": markdown(as_text(tables["accuracy"], with_intervals(tables["accuracy"]))),
        "differences": markdown(as_text(differences, with_intervals(differences))),
        "to_target": markdown(as_text(reached)),
        "curves": markdown(as_text(tables["curves"], {"accuracy": "test accuracy"})),
        "kl": markdown(as_text(tables["kl"], {"KL": "KL, nats per response"})),
        **{key: markdown(as_text(map(none_as_zero, tables[key]))) for key in ("memory", "seconds", "tokens")},
        "runs": markdown([{column: run[column] for column in RUN_COLUMNS} for run in tables["runs"]]),
    }


def with_intervals(rows: Sequence[Row]) -> dict[str, str]:
    """What the header says of intervals: nothing where one seed has none."""
    over = " [95 % interval over seeds]" if any(row["peak"]["ci95"] for row in rows) else ""
    return {column: f"{column}{over}" for column in ("peak", "last")}


def none_as_zero(row: Row) -> Row:
    return {column: 0.0 if value is None else value for column, value in row.items()}


def as_text(rows: Iterable[Row], headers: Mapping[str, str] | None = None) -> list[Row]:
    """`headers` has the columns that are called otherwise."""
    return [{(headers or {}).get(column, column): show(value) for column, value in row.items()} for row in rows]


def show(value: Any) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case {"mean": mean, "ci95": ci95}:
            return show(mean) if ci95 is None else f"{mean:.3f} [{ci95[0]:.3f}, {ci95[1]:.3f}]"
        case _:
            return number(value)
