"""`segments = "paper"`: the finished text is cut, as the paper's code does. For recipes/paper/ alone.

These rules look ahead: the next token decides whether a state is a boundary. So the segment before it gets the credit
of that token where there is none, and VinePPO's policy gradient is biased (docs/methods.md, "Segments").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

MIN_CHARS = 20
"""Shorter parts join the next one."""

PROTECTED = re.compile(
    r"\\begin\{(?P<env>[^{}\n]{1,40})\}.*?\\end\{(?P=env)\}"
    r"|\[asy\].*?\[/asy\]|\$\$.+?\$\$|\\\[.*?\\\]|\\\(.*?\\\)"
    r"|(?<!\\)\$(?:[^$\n]|\n(?![ \t]*\n))+?(?<!\\)\$",  # as in TeX, no blank line within $ $
    re.DOTALL,
)
DISPLAY = re.compile(r"\$\$|\\\[|\\begin")
FORMULA_ENDS_SENTENCE = re.compile(r"[.!?](?:\s|\\end\{[^{}]*\}|[$)\]}\\])*\Z")
MAX_ENDING = 60
"""Characters of brackets and \\end{...} behind a formula's last point."""
PARAGRAPH = "\u2029"
"""Stands for the end of a displayed formula that ends a sentence; what comes next may follow without a blank."""
SENTENCE_END = re.compile(
    rf"(?<={PARAGRAPH})(?=\s*[A-Z])"
    r"|(?<![A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<=[.!?])(?=\s+[A-Z])"
    r"|(?<=\n)(?=[^\n])"
)
SOFT_BREAKS = (re.compile(r"(?<=[,;:]) "), re.compile(r" (?=and |so |to |which |where )"))
FORMULA_BREAKS = (re.compile(r"(?<=\\\\)(?!\[)"), re.compile(r"(?==)|(?=\\equiv)"), re.compile(r"(?=[+])|(?<=,)"))


def cut_before_lines(text: str) -> list[int]:
    """Cuts before every line but the first: a line break begins the next segment, and so do blank lines before it.

    A line that begins with "####" (an answer line) stays with the line above, and so do blank lines at the end.
    """
    cuts: list[int] = []
    gap = 0  # where the line break after the last line with text stands
    position = 0
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped:
            if gap > 0 and not stripped.startswith("####"):
                cuts.append(gap)
            gap = position + len(line)
        position += len(line) + 1
    return cuts


def cut_finished_latex(text: str, max_chars: int) -> list[int]:
    """After sentences and line breaks, never inside a formula unless a part would be longer than `max_chars`."""
    masked = mask(text)
    cuts = [match.start() for match in SENTENCE_END.finditer(masked) if 0 < match.start() < len(text)]
    parts = merge_short([0, *cuts, len(text)], text)
    bounds = [0]
    for start, end in pairwise(parts):
        bounds += [*cut_long(text, masked, start, end, max_chars), end]
    return bounds[1:-1]


def mask(text: str) -> str:
    """The text with every formula as one long word of the same length, that ends a sentence if the formula does."""

    def word(match: re.Match[str]) -> str:
        end = "x"
        if FORMULA_ENDS_SENTENCE.search(match[0][-MAX_ENDING:]):
            end = PARAGRAPH if DISPLAY.match(match[0]) else "."
        return "X" + "x" * (len(match[0]) - 2) + end

    return PROTECTED.sub(word, text)


def merge_short(bounds: Sequence[int], text: str) -> list[int]:
    """Drops bounds until every part has MIN_CHARS of text; a short last part joins the one before."""
    kept = [bounds[0]]
    for bound in bounds[1:-1]:
        if len(text[kept[-1] : bound].strip()) >= MIN_CHARS:
            kept.append(bound)
    if len(kept) > 1 and len(text[kept[-1] :].strip()) < MIN_CHARS:
        kept.pop()
    return [*kept, bounds[-1]]


def cut_long(text: str, masked: str, start: int, end: int, max_chars: int) -> list[int]:
    """Bisects a part until its pieces fit: between words of the prose first, then rows of a formula, its sides last."""
    if end - start <= max_chars:
        return []
    for source, breaks in ((masked, SOFT_BREAKS), (text, FORMULA_BREAKS)):
        for pattern in breaks:
            low, high = start + MIN_CHARS, end - MIN_CHARS
            places = [match.start() for match in pattern.finditer(source, low, high) if low <= match.start() <= high]
            if places:
                cut = min(places, key=lambda place: abs(2 * place - start - end))
                left = cut_long(text, masked, start, cut, max_chars)
                return [*left, cut, *cut_long(text, masked, cut, end, max_chars)]
    return []
