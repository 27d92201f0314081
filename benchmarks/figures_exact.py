"""The tables of docs/methods.md on the exact worlds, from benchmarks/results/exact.json.

vineppo exact --json benchmarks/results/exact.json && python benchmarks/figures.py --write
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from figures import load, short

FILE = "exact.json"
DETAILED = "repair-8"
"""The world whose costs are told apart."""


def by_world() -> str:
    """Variance at equal sampled tokens in every world, and the largest exact bias in any."""
    worlds = load(FILE)["worlds"]
    names = list(dict.fromkeys(row["name"] for world in worlds for row in world["rows"]))
    rows = [[row_of(world, name) for world in worlds] for name in names]
    return table(
        ["estimator", "bias", *(world["name"] for world in worlds)],
        ([name, largest_bias(row), *map(at_equal_sampled, row)] for name, row in zip(names, rows, strict=True)),
    )


def by_cost() -> str:
    world = next(world for world in load(FILE)["worlds"] if world["name"] == DETAILED)
    return table(
        [DETAILED, "variance", "sampled", "trained", "computed", "at equal sampled", "trained", "computed"],
        (
            [
                row["name"],
                f"{row['variance']:.2f} ± {row['variance_se']:.2f}",
                *(f"{row[f'tokens_{cost}']:.0f}" for cost in ("sampled", "trained", "computed")),
                *(ratio(row[f"variance_at_equal_{cost}"]) for cost in ("sampled", "trained", "computed")),
            ]
            for row in world["rows"]
        ),
    )


def row_of(world: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((row for row in world["rows"] if row["name"] == name), None)


def largest_bias(rows: Iterable[dict[str, Any] | None]) -> str:
    known = [row["bias_exact"] for row in rows if row and row["bias_exact"] is not None]
    return short(max(known)) if known else ""


def at_equal_sampled(row: dict[str, Any] | None) -> str:
    return ratio(row["variance_at_equal_sampled"]) if row else ""


def ratio(number: dict[str, float]) -> str:
    """.058 ± .004, 1.18 ± .07, 15 ± 1."""
    value, se = number["ratio"], number["se"]
    digits = 0 if value >= 9.95 else 1 if value >= 1.995 else 2 if value >= 0.0995 else 3
    return f"{short(value, digits)} ± {short(max(se, 10**-digits), digits)}" if se > 1e-9 else short(value, digits)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
