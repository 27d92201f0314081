"""LaTeX answers read as what they are: a number or formula, a list, a tuple or interval, an equation, a word, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from vineppo.tasks.answers.boxes import all_boxes
from vineppo.tasks.answers.expressions import Tree, UnreadableError, parse
from vineppo.tasks.answers.units import known_units

MAX_ITEMS = 60
MAX_DEPTH = 8

WRITTEN_OTHERWISE = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": r"\div ", "\u03c0": r"\pi ",
    "\u221e": r"\infty ", "\u00b0": r"^\circ ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u222a": r"\cup ",
    "\u2205": r"\emptyset ", "\u00b1": r"\pm ", "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,", "\u2006": r"\,",
    "\u20ac": "", "\u00a3": "",
}  # fmt: skip
RULES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:left|right|[bB]ig+[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:text[a-z]+|mbox|mathrm|mathbf|mathit|operatorname|text|rm|bf)(?=\s*\{)\s*", r"\\text"),
        (r"\\text\{([ie])\}(?![a-zA-Z])", r"\1"),
        (r"\(\\text\{\(?([A-Za-z])\)?\}\)", r"(\1)"),
        (r"\\\$|\\?\\(?:euro|pounds)(?![a-zA-Z])|\$", ""),
        (r"\\degree(?![a-zA-Z])", r"^\\circ"),
        (r"\\%", "%"),
        (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\phantom\{[^{}]*\}", " "),
        (r"(?<=[0-9])(?:\\,|\{,\}|,\s*\\!|\\!)\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\quad(?![a-zA-Z])|\\qquad(?![a-zA-Z])", " "),
        (r"\\text\{[\s,]*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", ","),
        (r",\s*,", ","),
        (r"\s+", " "),
    )
]
THOUSANDS = re.compile(
    r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])"
    r"|(?<![0-9.,] )(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/]| [0-9])"
)
END = re.compile(r"[\s.,;:?\\]+$")
LETTER = r"(?:\\[a-zA-Z]+|[a-zA-Z])"
NAME = re.compile(
    rf"({LETTER}(?:_(?:[0-9a-zA-Z]|\{{[0-9a-zA-Z,]+\}}))?(?:\([0-9a-zA-Z]+(?:,[0-9a-zA-Z]+)*\))?|[A-Z]{{2,4}}|\|[A-Z]{{2}}\||"
    r"\\(?:angle|overline) ?\{?[A-Z]{1,3}\}?|\\text\{[a-zA-Z ]+\}|\((?:[a-zA-Z],)+[a-zA-Z]\))$"
)  # fmt: skip
RELATION = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))")
MATRIX = re.compile(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", re.DOTALL)
BASED = re.compile(r"(-?[0-9A-Z]*\.?[0-9A-Z]+)_(?:\{?([0-9]+)\}?|\{?\\text\{([a-z]+)\}\}?)")
WORDS = re.compile(r"\\text\{([^{}]*)\}")
TRAILING = re.compile(
    r"\^ ?(?:\\circ|\{\\circ\})|%|\\text\{(?P<text>[^{}]*)\}(?:\^\{?[23]\}?)?"
    r"|(?<=[0-9}]) (?P<plain>[a-zA-Z][a-zA-Z. ]+)"
)
INFINITE = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}
MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


@dataclass(frozen=True)
class Answer:
    kind: str
    """value, infinite, list, tuple, union, matrix, ratio, equation, based, empty or words"""
    text: str
    """Tidied, without blanks."""
    items: tuple[Answer, ...] = ()
    tree: Tree = ()
    marks: str = ""
    """A tuple's brackets, a number's base, an infinity's sign, a matrix's rows."""
    name: str = ""
    """`x` in `x = 5`."""
    units: frozenset[str] = frozenset()


@lru_cache(maxsize=1000)  # the same gold for many answers
def tidy(text: str) -> str:
    """One way to write what LaTeX and typists write in many, without the punctuation of the sentence around it."""
    for character, new in WRITTEN_OTHERWISE.items():
        text = text.replace(character, new)
    for pattern, new in RULES:
        text = pattern.sub(new, text)
    text = unwrap(join_thousands(END.sub("", text).strip().lstrip(",")))
    return END.sub("", text).strip()


def unwrap(text: str) -> str:
    """Without bold stars and inner boxes around all of it, and without a group of braces that says nothing."""
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2].strip()
    boxes = all_boxes(text) if text.startswith((r"\boxed", r"\fbox")) else []
    if len(boxes) == 1 and text.endswith("}"):
        text = boxes[0]
    if text.startswith("{") and is_enclosed(text):
        text = text[1:-1].strip()
    return text


def join_thousands(text: str) -> str:
    """`1,234` and `1 234` become 1234 where they stand outside of brackets; `(1,234)` is a pair, `1, 234` a list."""
    if not any(character in text for character in ", "):
        return text
    outside = [depth == 0 for depth in depths(text)]
    return THOUSANDS.sub(lambda m: re.sub("[ ,]", "", m[0]) if outside[m.start()] else m[0], text)


def spread(text: str) -> str:
    """Where a list is wanted, `70,110` is one."""
    return re.sub(r"(?<=[0-9]),(?=[0-9])", ", ", text)


def compact(text: str) -> str:
    """Without blanks, but for those between digits or letters."""
    return re.sub(r"(?<![0-9a-zA-Z]) | (?![0-9a-zA-Z])", "", text)


def words_of(text: str) -> str:
    """Letters, digits and colons in lower case, for answers that are words."""
    return re.sub(r"[\s.'\"{}]|-(?=[a-zA-Z])", "", text.replace(r"\text", "")).lower()


def depths(text: str) -> Iterator[int]:
    """How many brackets are open at each character; braces and brackets of all kinds, as intervals mix them."""
    depth = 0
    previous = ""
    for character in text:
        opens, closes = character in "([", character in ")]"
        if character in "{}" and previous == "\\":
            opens, closes = character == "{", character == "}"
        depth -= closes
        yield depth
        depth += opens
        previous = character


def all_depths(text: str) -> Iterator[int]:
    depth = 0
    for character in text:
        depth -= character in ")]}"
        yield depth
        depth += character in "([{"


def split(text: str, separator: str) -> list[str]:
    """At a text that stands outside of all brackets."""
    parts, start = [], 0
    level = list(all_depths(text))
    position = text.find(separator)
    while position >= 0:
        if level[position] == 0:
            parts.append(text[start:position].strip())
            start = position + len(separator)
        position = text.find(separator, position + 1)
    return [*parts, text[start:].strip()]


def is_enclosed(text: str) -> bool:
    """Whether the first bracket closes with the last one."""
    level = list(all_depths(text))
    return len(text) > 1 and text[0] in "([{" and text[-1] in ")]}" and level[-1] == 0 and all(level[1:-1])


def read_tidy(text: str, depth: int) -> Answer:
    if not text or depth > MAX_DEPTH:
        raise UnreadableError("nothing, or too deep")
    whole = compact(text)
    if text == r"\emptyset":
        return Answer("empty", whole)
    if match := MATRIX.fullmatch(text):
        rows = [row.split("&") for row in match[1].split(r"\\") if row.strip()]
        return group(
            "matrix", whole, [cell.strip() for row in rows for cell in row], depth, str([len(row) for row in rows])
        )
    if len(parts := split(text, r"\cup")) > 1:
        return group("union", whole, parts, depth)
    if len(parts := split(text.replace(";", ","), ",")) > 1:
        return as_list(whole, parts, depth)
    if len(parts := RELATION.split(text)) > 1:
        return read_inequality(whole, [part.strip() for part in parts], depth)
    if len(parts := split(text, r"\in ")) == 2 and NAME.fullmatch(compact(parts[0])):
        return named(read_tidy(parts[1], depth + 1), parts[0])
    if len(parts := split(text, "=")) > 1:
        return read_equation(whole, parts, depth)
    if text.startswith(r"\{") and text.endswith(r"\}") and is_enclosed(text[1:-2] + "}"):
        return as_list(whole, split(text[2:-2].replace(";", ","), ","), depth)
    if is_enclosed(text) and text[0] != "{" and len(parts := split(text[1:-1], ",")) > 1:
        return group("tuple", whole, parts, depth, text[0] + text[-1])
    return read_one(text, whole, depth)


def group(kind: str, whole: str, parts: list[str], depth: int, marks: str = "") -> Answer:
    if len(parts) > MAX_ITEMS:
        raise UnreadableError("too many")
    return Answer(kind, whole, tuple(read_tidy(part, depth + 1) for part in parts), marks=marks)


def as_list(whole: str, parts: list[str], depth: int) -> Answer:
    """In no order; lists within, as `1 \\pm \\sqrt2` is one, become part of it. Inequalities of a name are a union."""
    found = group("list", whole, parts, depth)
    items = [inner for item in found.items for inner in (item.items if item.kind == "list" else (item,))]
    names = {item.name for item in items if item.kind == "tuple" and not item.name.startswith("(")}
    if len(names) == 1 and all(names) and all(item.kind == "tuple" for item in items):
        return Answer("union", whole, tuple(items), name=names.pop())
    return Answer("list", whole, tuple(items))


def named(answer: Answer, name: str) -> Answer:
    return replace(answer, name=compact(name))


def read_equation(whole: str, parts: list[str], depth: int) -> Answer:
    """`x = 5` is 5 with a name, any other equation is itself; chains of several are unreadable."""
    if len(parts) != 2:
        raise UnreadableError("a chain of equations")
    left, right = parts if NAME.fullmatch(compact(parts[0])) else parts[::-1]
    if NAME.fullmatch(compact(left)):
        return named(read_tidy(right, depth + 1), left)
    return Answer("equation", whole, tree=("add", parse(left), ("negate", parse(right))))


def read_inequality(whole: str, parts: list[str], depth: int) -> Answer:
    """`2 < x \\le 3` and `x > 2` as intervals with a name."""
    if len(parts) == 3:
        left, sign, right = parts
        if NAME.fullmatch(compact(right)):
            left, sign, right = right, MIRRORED[sign], left
        low, high = (right, r"\infty") if sign in (">", r"\ge") else (r"-\infty", right)
        name, signs = left, (sign, sign)
    elif len(parts) == 5:
        low, first, name, second, high = parts
        if first[-1] in ">e" and first in (">", r"\ge"):
            low, first, second, high = high, MIRRORED[second], MIRRORED[first], low
        if first not in ("<", r"\le") or second not in ("<", r"\le"):
            raise UnreadableError("a chain of inequalities")
        signs = (first, second)
    else:
        raise UnreadableError("a chain of inequalities")
    if not NAME.fullmatch(compact(name)):
        raise UnreadableError("an inequality without a name on one side")
    closed = [
        sign in (r"\le", r"\ge") and bound not in INFINITE for sign, bound in zip(signs, (low, high), strict=True)
    ]
    marks = "(["[closed[0]] + ")]"[closed[1]]
    return named(group("tuple", whole, [low, high], depth, marks), name)


def read_one(text: str, whole: str, depth: int) -> Answer:
    """What is one value, one word, or one value with a unit."""
    if r"\pm" in text or r"\mp" in text:
        upper, lower = text.replace(r"\pm", "+").replace(r"\mp", "-"), text.replace(r"\pm", "-").replace(r"\mp", "+")
        return as_list(whole, [upper, lower], depth)
    if whole in INFINITE:
        return Answer("infinite", whole, marks=str(INFINITE[whole]))
    if (match := BASED.fullmatch(whole)) and match[1].strip("-")[0] in ".0123456789":
        return Answer("based", whole, tree=("digits", match[1]), marks=match[2] or match[3])
    if len(parts := split(text, ":")) == 2:
        return group("ratio", whole, parts, depth)
    if match := WORDS.fullmatch(text):
        return read_words(match[1].strip(), whole, depth)
    bare, units = strip_units(text)
    if bare != text and bare:
        answer = read_tidy(bare, depth + 1)
        return Answer(
            answer.kind, answer.text, answer.items, answer.tree, answer.marks, answer.name, units | answer.units
        )
    return Answer("value", whole, tree=parse(text))


def read_words(words: str, whole: str, depth: int) -> Answer:
    """Numbers, single letters and lists of them are what they would be without \\text."""
    inside = [part.strip() for part in words.strip("()").split(",")]
    if all(re.fullmatch(r"[A-Za-z]|-?[0-9.]+", part) for part in inside):
        return read_tidy(", ".join(inside), depth + 1)
    if not re.search("[a-zA-Z0-9]", words):
        raise UnreadableError("no words")
    return Answer("words", whole)


def strip_units(text: str) -> tuple[str, frozenset[str]]:
    """Without the degree, per-cent sign or words behind a value."""
    units: frozenset[str] = frozenset()
    for _ in range(MAX_DEPTH):
        matches = [match for match in TRAILING.finditer(text) if match.end() == len(text)]
        if not matches or matches[0].start() == 0:
            break
        words = matches[0]["text"] if matches[0]["text"] is not None else matches[0]["plain"]
        if matches[0]["plain"] and len(words) < 3 and not known_units(words):
            break
        if words is not None:
            found = known_units(words)
            if found is None:
                raise UnreadableError(f"{words!r} is no unit")
            units |= found
        text = END.sub("", text[: matches[0].start()]).strip()
    return text, units
