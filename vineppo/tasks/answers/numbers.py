"""Final answers of the form `#### 1,234`, read as exact numbers."""

from __future__ import annotations

import re
from fractions import Fraction

from vineppo.tasks.answers.boxes import boxed_answer
from vineppo.tasks.answers.places import answer_behind
from vineppo.tasks.answers.units import known_units
from vineppo.types import Grade

MAX_CHARS = 400
UNTOLD = str.maketrans({"$": None, "\\": None, "*": None, "\u2212": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
NAME = re.compile(r"[a-zA-Z](?:_?[a-zA-Z0-9])?\s*=\s*")
NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
FRACTION = rf"(?P<top>{NUMERAL})(?:\s*/\s*(?P<bottom>{NUMERAL}))?"
NUMBER = re.compile(rf"(?P<sign>[+-]?)\s*{FRACTION}(?:\s*%)?(?P<words>.*)")
MIXED = re.compile(r"(?P<sign>[+-]?)\s*(?P<whole>[0-9]+) (?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+)(?P<words>.*)")


def hash_answer(response: str) -> str | None:
    """The rest of the line after the last `####`, or None where there is none."""
    return answer_behind("####", response)


def gold_number(solution: str) -> str:
    """The number that a solution of GSM8K ends with. Raises ValueError where there is none."""
    answer = hash_answer(solution)
    if answer is None or parse_number(answer) is None:
        raise ValueError(f"no number after '####': {solution[-40:]!r}")
    return answer


def grade_number(gold: str, answer: str | None) -> Grade:
    number = parse_number(answer)
    if number is None:
        return Grade(0.0, "unparseable")
    return Grade(1.0, "correct") if number == parse_number(gold) else Grade(0.0, "wrong")


def parse_number(text: str | None) -> Fraction | None:
    """An integer, decimal, fraction or mixed number, exact; None for anything else.

    Thousands may be set apart by commas or blanks. `$`, `%`, bold stars, a box, a name as in `x = 18`, a unit and a
    final point do not matter.
    """
    text = (text or "").strip()
    if len(text) > MAX_CHARS:
        return None
    text = (boxed_answer(text) or text).translate(UNTOLD).strip()
    text = NAME.sub("", text, count=1) if NAME.match(text) else text
    text = text.rstrip(".,;: ")
    match = MIXED.fullmatch(text) or NUMBER.fullmatch(text)
    if match is None or not is_unit(match["words"]):
        return None
    found = match.groupdict()
    top, bottom = (Fraction(re.sub("[ ,]", "", part or "1")) for part in (found["top"], found["bottom"]))
    if bottom == 0 or ("whole" in found and top >= bottom):
        return None
    value = Fraction(found.get("whole") or 0) + top / bottom
    return -value if found["sign"] == "-" else value


def is_unit(words: str) -> bool:
    """Words behind a number, with a blank between; without one they would be part of it, as in `5k`."""
    return not words or (words.startswith(" ") and known_units(words) is not None)
