"""Rows as a table of plain text: aligned for a terminal, or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vineppo.machine.terminal import printable

Row = dict[str, Any]
"""Column -> text, a number or None."""


def aligned(rows: Sequence[Row], max_rows: int = 20) -> str:
    """Columns side by side, numbers to the right with three digits; nothing is wrapped or cut."""
    if len(rows) > max_rows:
        return f"{aligned(rows[:max_rows])}\n(and {len(rows) - max_rows} rows more)"
    names = column_names(rows)
    cells = [list(map(cell, names)), *([cell(rounded(row.get(name))) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [any(isinstance(row.get(name), str) for row in rows) for name in names]
    return "\n".join(
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in cells
    )


def markdown(rows: Sequence[Row]) -> str:
    """Values as they are; nothing where there are no rows."""
    if not rows:
        return ""
    names = column_names(rows)
    lines = [names, ["---"] * len(names), *([row.get(name) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(cell(value).replace("|", "\\|") for value in line) + " |" for line in lines)


def column_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def cell(value: Any) -> str:
    """One line without control characters: names are the folder's and the recipe's owner's, who may write anything."""
    return "-" if value is None else printable(str(value)).replace("\n", " ")


def rounded(value: Any) -> Any:
    return number(value) if isinstance(value, float) else value


def number(value: float) -> str:
    """Three digits, or all in front of the point.

    >>> number(0.12345), number(12_345.6)
    ('0.123', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
