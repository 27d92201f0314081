"""Where a response has its answer, when it is no box."""

from __future__ import annotations


def answer_behind(marker: str, response: str) -> str | None:
    """The rest of the line after the last marker, or None where there is none."""
    _, found, rest = response.rpartition(marker)
    answer = rest.partition("\n")[0].strip()
    return answer if found and answer else None


def last_line(response: str) -> str | None:
    """The last one with text."""
    return next((line.strip() for line in reversed(response.splitlines()) if line.strip()), None)
