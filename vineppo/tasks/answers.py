"""Final answers of the form `#### 1,234`, read as exact numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from vineppo.types import Grade

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(/\d+)?")
IGNORED = str.maketrans(
    {",": None, "$": None, "\\": None, "%": None, " ": None, "\t": None, "\u00a0": None, "\u202f": None, "\u2212": "-"}
)


def hash_answer(response: str) -> str | None:
    """The rest of the line after the last `####`, or None where there is none."""
    _, found, rest = response.rpartition("####")
    lines = rest.strip().splitlines()
    return lines[0].strip() if found and lines else None


def grade_number(gold: str, answer: str | None) -> Grade:
    number = parse_number(answer)
    if number is None:
        return Grade(0.0, "unparseable")
    return Grade(1.0, "correct") if number == parse_number(gold) else Grade(0.0, "wrong")


def parse_number(text: str | None) -> Fraction | None:
    """Exact; commas, `$`, `\\$`, `%`, spaces, a final point and zeros do not matter. None if it is no number."""
    digits = (text or "").translate(IGNORED).rstrip(".")
    if len(digits) > 400 or not NUMBER.fullmatch(digits):
        return None
    numerator, _, denominator = digits.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / int(denominator or 1)
