"""Where a LaTeX solution may be cut, read once from left to right: a cut depends on nothing that comes after it.

Sentences and line breaks outside of formulas end a segment; one that has grown long ends at its next soft break. The
places are those that the text before them tells: "." behind a word or a formula ends a sentence at once, "3." only with
the blank after it, "e.g." never.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIN_CHARS = 20
"""A segment is at least this long, from its first text on, before a sentence can end it."""
VERY_LONG = 2
"""Times `max_chars` from which on any blank ends a segment, and inside a formula =, + and commas do."""
WINDOW = 60
"""Characters before a mark that may be looked at: a word, \\begin{...}, what stands behind a formula's last point."""

MARK = re.compile(r"[\\$()\[\]}.!?,;:=+\s]")  # always one character: nothing behind it is looked at
BEGIN = re.compile(r"\\begin\{([^{}\n]{1,40})\}\Z")
LAST_WORD = re.compile(r"[^\W\d_]{1,20}\Z")
ABBREVIATIONS = frozenset(("approx", "cf", "dr", "eq", "eqs", "fig", "mr", "mrs", "ms", "resp", "st", "vs"))
BEHIND_A_WORD = frozenset(")]}$%*\"'\u201d\u2019")
FORMULA_ENDS_SENTENCE = re.compile(r"(?<!\.)[.?](?:\s|\\end\{[^{}]*\}|[$)\]}\\])*\Z")
OPENERS = {"$": "$", r"\(": r"\)", r"\[": r"\]"}
PICTURE, PICTURE_END = "[asy]", "[/asy]"
ENDED_BY_BLANK_LINE = ("$", "$$", r"\)", r"\]")  # as in TeX; so what is never closed does not swallow the rest


def cut_latex(text: str, max_chars: int) -> list[int]:
    """Character positions at which segments begin, strictly increasing, inside (0, len(text)]. Linear in the text."""
    reader = Reader(text, max_chars)
    return [match.end() for match in MARK.finditer(text) if reader.ends_segment(match.end())]


@dataclass
class Reader:
    """What the marks so far say: where the segment's text began, and which formula is open."""

    text: str
    max_chars: int
    begun: int = 0  # where the segment's text begins, behind its first blanks
    line: int = 0  # where the line begins
    closer: str = ""  # of the formula, environment or picture that is open; "" in prose
    opened: int = 0  # where it began
    escaped: int = -1  # where the character behind a backslash stands
    dollar: int = -1  # behind the last $ inside of $$ $$

    def ends_segment(self, end: int) -> bool:
        """Reads the mark that ends at `end`; every mark is read once, in order."""
        mark = self.read(end)
        was_open = bool(self.closer)
        closed = was_open and self.closes(mark, end)
        if closed:
            self.closer = ""
        elif not was_open:
            self.open(mark, end)
        if mark == "\n":
            self.end_line(end)
        if mark.isspace() and self.begun == end - 1:
            self.begun = end
        size = end - self.begun
        if was_open and self.closer:
            ends = size > self.max_chars and self.breaks_formula(mark, size)
        else:
            ends = size >= MIN_CHARS and self.ends_sentence(mark, end, closed)
            ends = ends or (size > self.max_chars and self.breaks_prose(mark, end, size))
        if ends:
            self.begun = end
        return ends

    def read(self, end: int) -> str:
        """The mark, with its backslash where it has one."""
        mark = self.text[end - 1]
        if end - 1 == self.escaped and not mark.isspace():
            return "\\" + mark
        if mark == "\\":
            self.escaped = end
        return mark

    def open(self, mark: str, end: int) -> None:
        if mark in OPENERS:
            self.closer, self.opened = OPENERS[mark], end
        elif mark == "]" and self.text.endswith(PICTURE, 0, end):
            self.closer, self.opened = PICTURE_END, end
        elif mark == "}" and (environment := BEGIN.search(self.text, max(0, end - WINDOW), end)):
            self.closer, self.opened = f"\\end{{{environment[1]}}}", end

    def closes(self, mark: str, end: int) -> bool:
        if self.closer == "$" and mark == "$" and end - 1 == self.opened:
            self.closer, self.opened = "$$", end
            return False
        if self.closer == "$$":
            self.dollar, before = (end, self.dollar) if mark == "$" else (-1, -1)
            return before == end - 1 > self.opened
        return mark == self.closer or (mark in ("}", "]") and self.text.endswith(self.closer, self.opened, end))

    def end_line(self, end: int) -> None:
        is_blank = not self.text[self.line : end].strip()
        if is_blank and self.closer in ENDED_BY_BLANK_LINE:
            self.closer = ""
        self.line = end

    def ends_sentence(self, mark: str, end: int, closed: bool) -> bool:
        if closed:
            return bool(FORMULA_ENDS_SENTENCE.search(self.text, max(self.opened, end - WINDOW), end))
        if mark in (".", "!", "?"):
            before = self.text[end - 2]
            word = LAST_WORD.search(self.text, max(0, end - WINDOW), end - 1)
            is_word = word is not None and len(word[0]) > 1 and word[0].lower() not in ABBREVIATIONS
            return is_word or before in BEHIND_A_WORD
        behind_number = mark.isspace() and self.text[end - 2] in ".?" and self.text[end - 3].isdigit()
        return mark == "\n" or behind_number

    def breaks_prose(self, mark: str, end: int, size: int) -> bool:
        before = self.text[end - 2]
        if mark in (",", ";", ":"):
            return not before.isdigit()  # a thousand, a ratio or a time may go on
        return mark == r"\\" or (mark.isspace() and (before in ",;:" or size > VERY_LONG * self.max_chars))

    def breaks_formula(self, mark: str, size: int) -> bool:
        if mark == r"\\" or (mark == "\n" and self.closer == PICTURE_END):
            return True
        return mark in ("=", "+", ",", "\n") and size > VERY_LONG * self.max_chars
