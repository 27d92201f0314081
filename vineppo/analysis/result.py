"""What an analysis gives: tables of rows, charts, and how to read them. One JSON file and an SVG per chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vineppo.intervals import interval
from vineppo.machine.files import write_file
from vineppo.machine.tables import Row
from vineppo.report.charts import Chart, save_figure


@dataclass(frozen=True)
class Result:
    kind: str
    title: str
    text: str
    tables: Mapping[str, Sequence[Row]]
    charts: Mapping[str, Chart] = field(default_factory=dict)

    def save(self, folder: Path, context: Mapping[str, Any]) -> Path:
        """`context` says what it was made from and with."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.kind}.json"
        write_file(path, json.dumps(asdict(self) | dict(context), indent=1, allow_nan=False) + "\n")
        for name, chart in self.charts.items():
            save_figure(chart, folder / f"{self.kind}-{name}.svg")
        return path


def over_seeds(rows: Sequence[Row], by: Sequence[str], column: str) -> list[Row]:
    """The mean of a column over the runs that share all of `by`, with Student's 95 % interval over them.

    Of one run it is that run's number, with its own interval over problems where the rows have one.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    found = []
    for key, group in groups.items():
        known = [row for row in group if row[column] is not None]
        if not known:
            continue
        shared = interval([row[column] for row in known])
        low, high = shared["ci95"] or (known[0].get("low"), known[0].get("high"))
        shared_columns = dict(zip(by, key, strict=True))
        found.append({**shared_columns, column: shared["mean"], "low": low, "high": high, "runs": len(known)})
    return found


def plot(
    chart: Callable[..., Chart],
    title: str,
    rows: Sequence[Row],
    *,
    by: Sequence[str],
    y: str,
    colour_by: str,
    called: str = "",
    **how: Any,
) -> Chart:
    """A chart of means over seeds; its axis says `called` where the column's name says too little."""
    named = called or y
    pooled = over_seeds(rows, by, y)
    marks = [
        {**row, named: row[y]} | {end: row[y] for end in ("low", "high") if row[end] is None}  # no interval, no whisker
        for row in pooled
    ]
    return chart(title, marks, y=named, by=colour_by, ci=any(row["low"] is not None for row in pooled), **how)
