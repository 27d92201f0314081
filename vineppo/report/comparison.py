"""What is shown of a comparison (comparison.json): curves on every axis, intervals over seeds, what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vineppo.report.charts import Chart, Row, bars, lines, points

AXES = {
    "iteration": "iteration",
    "steps": "optimizer steps",
    "rollouts": "rollouts",
    "tokens": "generated tokens",
    "seconds": "seconds",
}

PER_STEP = "(DPO+: an iteration is an optimizer step)"


def comparison_section(comparison: Mapping[str, Any]) -> dict[str, Any]:
    methods = comparison["methods"]
    num_runs, failed = len(comparison.get("runs", [])), comparison.get("failed")
    drawn = "Bands and whiskers are 95 % intervals over seeds (Student's t): how far another set of seeds may lie."
    one_seed = "One seed each, so no interval: another seed may lie anywhere."
    return {
        "kind": "Comparison",
        "title": "Comparison",
        "text": f"{num_runs} runs of {len(methods)} methods. {drawn if has_intervals(methods, 'peak') else one_seed} "
        "A peak is the best of a run's evaluations. An iteration of DPO+ and SFT is an optimizer step.",
        "warnings": [
            *([f"Failed and not in here: {', '.join(failed)}."] if failed else []),
            *comparison.get("warnings", []),
        ],
        "charts": comparison_charts(comparison),
        "tables": comparison_tables(comparison),
    }


def comparison_charts(comparison: Mapping[str, Any]) -> dict[str, Chart]:
    methods = comparison["methods"]
    curve = curve_rows(methods)
    charts = {"Peak accuracy": interval_bars("Peak test accuracy", "accuracy", methods, "peak")}
    for axis, name in AXES.items():
        rows = [row | {name: row[axis]} for row in curve]
        title = f"Test accuracy by {name}" + (f" {PER_STEP}" if axis == "iteration" else "")
        charts[f"Accuracy by {name}"] = lines(
            title, rows, x=name, y="accuracy", by="method", ci=has_intervals(methods, "peak")
        )
    seen = [row for row in curve if row["train accuracy"] is not None]
    if seen:
        ends = [row[key] for row in seen for key in ("train accuracy", "accuracy")]
        charts["Train and test accuracy"] = points(
            "Test accuracy against training reward",
            [{**row, "test accuracy": row["accuracy"]} for row in seen],
            x="train accuracy",
            y="test accuracy",
            by="method",
            diagonal=(min(ends), max(ends)),
        )
    level = comparison.get("equal_accuracy")
    if level is not None:
        charts["KL at equal accuracy"] = interval_bars(
            f"KL to the reference at accuracy {level:.3f}", "nats per response", methods, "kl_at_equal_accuracy"
        )
    memory = [{"method": name, "MiB": method["memory_mb"].get("peak_mb")} for name, method in methods.items()]
    charts["Peak memory"] = bars("Peak memory", memory, x="method", y="MiB")
    for title, unit, key in (
        ("Seconds per iteration", "seconds", "seconds_per_iteration"),
        ("Generated tokens per iteration", "tokens", "tokens_per_iteration"),
    ):
        rows = [
            {"method": name, unit: value, "part": part}
            for name, method in methods.items()
            for part, value in method[key].items()
        ]
        charts[title] = bars(f"{title} {PER_STEP}", rows, x="method", y=unit, by="part")
    return charts


def comparison_tables(comparison: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    methods = comparison["methods"]
    tables = {
        "Test accuracy": [
            {"method": name, **interval("peak", m["peak"]), **interval("last", m["final"]), "seeds": len(m["seeds"])}
            | ({"evaluations": m["num_evaluations"]} if "num_evaluations" in m else {})
            for name, m in methods.items()
        ],
        "VinePPO less each method, seed by seed": [
            {"method": name, **interval("peak", row["peak"]), **interval("last", row["final"])}
            for name, row in comparison.get("differences", {}).items()
        ],
        f"To PPO's peak, medians over the seeds that reach it {PER_STEP}": [
            {"method": name, **m["to_target"]} for name, m in methods.items() if m["to_target"]
        ],
        "KL at equal accuracy": [
            {
                "method": name,
                **interval("KL", m["kl_at_equal_accuracy"]),
                "seeds that reach it": m["kl_at_equal_accuracy"]["n"],
            }
            for name, m in methods.items()
        ],
        "Memory, MiB": breakdown(methods, "memory_mb"),
        f"Seconds per iteration {PER_STEP}, by phase": breakdown(methods, "seconds_per_iteration"),
        f"Generated tokens per iteration {PER_STEP}, by purpose": breakdown(methods, "tokens_per_iteration"),
        f"Curves, means over seeds {PER_STEP}": curve_rows(methods),
        "Runs": [
            {key: run[key] for key in ("folder", "method", "seed", "peak", "final", "device", "commit")}
            for run in comparison.get("runs", [])
        ],
    }
    return {name: rows for name, rows in tables.items() if rows}


def curve_rows(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "method": name,
            **{axis: point[axis] for axis in AXES},
            "accuracy": point["accuracy"]["mean"],
            **low_high(point["accuracy"]),
            "train accuracy": point["train_accuracy"],
            "KL": point["kl"],
        }
        for name, method in methods.items()
        for point in method["curve"]
    ]


def interval_bars(title: str, unit: str, methods: Mapping[str, Any], key: str) -> Chart:
    rows: list[Row] = [
        {"method": name, unit: method[key]["mean"], **low_high(method[key])}
        for name, method in methods.items()
        if method[key]["mean"] is not None
    ]
    return bars(title, rows, x="method", y=unit, ci=has_intervals(methods, key))


def has_intervals(methods: Mapping[str, Any], key: str) -> bool:
    return any(method[key]["ci95"] is not None for method in methods.values())


def low_high(value: Mapping[str, Any]) -> dict[str, float | None]:
    """One seed has no interval: it is then the value itself."""
    low, high = value["ci95"] or (value["mean"], value["mean"])
    return {"low": low, "high": high}


def interval(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    low, high = value["ci95"] or (None, None)
    return {name: value["mean"], f"{name}, low": low, f"{name}, high": high}


def breakdown(methods: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    columns: Iterable[str] = sorted({column for method in methods.values() for column in method[key]})
    return [{"method": name, **{c: method[key].get(c) for c in columns}} for name, method in methods.items()]
