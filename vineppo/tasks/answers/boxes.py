"""The answer that a solution puts in \\boxed{} or \\fbox{}."""

from __future__ import annotations

import re
from functools import lru_cache

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=[{\w$\\-])")
UP_TO_BLANK = re.compile(r"[^\s${][^\s$]{0,199}")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
NOTE = re.compile(r"(?<=\s)Note:")
"""What graders of people were told; the boxes before it are the answer."""
MAX_JOINT = 60
JOINT = re.compile(
    r"[\s$.]*(?:[,;]|\\text\{\s*(?:,?\s*(?:and|or))\s*\}|and\b|or\b)(?:\s*(?:and|or)\b)?[\s$]*"
    r"(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?\s*=\s*)?"
)
"""What may stand between boxes that give one answer together, as in `$x = \\boxed{-2}$ and $x = \\boxed{1}$`."""


def boxed_answer(text: str) -> str | None:
    """The content of the last balanced box; of several ones that are joined by `and`, `or` or a comma, all contents.

    What follows a `\\boxed ` without braces, up to a blank or $, counts only where no box has braces.
    """
    boxes = balanced_boxes(text)
    if not boxes:
        return bare_answer(text)
    first = len(boxes) - 1
    while first > 0 and is_joint(text[boxes[first - 1][1] + 1 : boxes[first][2]]):
        first -= 1
    return ", ".join(filter(None, (text[start:end].strip() for start, end, _ in boxes[first:]))) or None


def all_boxes(text: str) -> list[str]:
    return [text[start:end].strip() for start, end, _ in balanced_boxes(text)]


@lru_cache(maxsize=8)
def balanced_boxes(text: str) -> tuple[tuple[int, int, int], ...]:  # (content's start, content's end, command's start)
    """The outermost ones, in order."""
    ends = closing_braces(text)
    found: list[tuple[int, int, int]] = []
    for match in BOX.finditer(text):
        start = match.end()
        if start in ends and not (found and start < found[-1][1]):
            found.append((start + 1, ends[start], match.start()))
    note = NOTE.search(text, found[0][1]) if found else None
    return tuple(box for box in found if note is None or box[2] < note.start())


def bare_answer(text: str) -> str | None:
    for match in reversed(list(BOX.finditer(text))):
        word = UP_TO_BLANK.match(text, match.end())
        if word:
            return word[0].rstrip(".,;:") or None
    return None


def is_joint(text: str) -> bool:
    return len(text) <= MAX_JOINT and JOINT.fullmatch(text) is not None


def closing_braces(text: str) -> dict[int, int]:
    """Where each brace that closes has its partner, in one pass; escaped braces do not count."""
    ends: dict[int, int] = {}
    open_braces: list[int] = []
    for match in BRACE.finditer(text):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            ends[open_braces.pop()] = match.start()
    return ends
