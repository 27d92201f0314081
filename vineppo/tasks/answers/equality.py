"""Whether an answer is the gold one. docs/tasks.md has the table of what is accepted and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from vineppo.tasks.answers.evaluation import InexactError, operations, proportional, same_function, symbols
from vineppo.tasks.answers.expressions import Tree, UnreadableError, parse
from vineppo.tasks.answers.reading import Answer, compact, read_tidy, spread, tidy, words_of
from vineppo.tasks.answers.units import agree

FAILURES = (UnreadableError, InexactError, RecursionError, OverflowError, ZeroDivisionError)
MAX_CHARS = 2000
ARITHMETIC = frozenset({"add", "multiply", "divide"})
ALGEBRA = ARITHMETIC | {"power", "root", "undone", "product of sums"}
"""What an answer may use where the gold has symbols; functions and factorials only where the gold has them."""


def equal_answers(gold: str, answer: str) -> bool:
    """Whether they are the same text, once tidied, or the same thing of the same kind."""
    if len(answer) > MAX_CHARS:
        return False
    golden, given = tidy(gold), tidy(answer)
    if compact(golden) == compact(given):
        return True
    reading = try_to_read(golden)
    if reading is None:
        return False
    if reading.kind == "words":
        return words_of(golden) == words_of(given)
    ways = [given, tidy(spread(answer))] if reading.kind == "list" else [given]
    return any(is_same(reading, try_to_read(way)) for way in ways)


@lru_cache(maxsize=1000)
def try_to_read(tidied: str) -> Answer | None:
    try:
        return read_tidy(tidied, 0)
    except FAILURES:
        return None


def is_same(gold: Answer, answer: Answer | None) -> bool:
    try:
        return answer is not None and same(gold, answer)
    except FAILURES:  # too large to compute
        return False


def is_readable(text: str) -> bool:
    return try_to_read(tidy(text)) is not None


def same(gold: Answer, answer: Answer) -> bool:
    gold, answer = without_repeats(gold), without_repeats(answer)
    if not agree(gold.units, answer.units):
        return False
    both_named = bool(gold.name and answer.name)
    if "equation" in (gold.kind, answer.kind) or (both_named and gold.name != answer.name):
        return same_equation(gold, answer)
    if gold.kind == "based":
        digits = gold.tree[1]
        return answer.text == digits or (
            answer.kind == "based" and (answer.tree, answer.marks) == (gold.tree, gold.marks)
        )
    if gold.kind != answer.kind:
        return False
    if gold.kind == "value":
        return same_value(gold.tree, answer.tree, len(gold.text) + len(answer.text))
    if gold.kind == "words":
        return words_of(gold.text) == words_of(answer.text)
    if gold.kind in ("list", "union"):
        return same_in_any_order(gold.items, answer.items)
    if gold.kind == "ratio":
        return same_ratio(gold, answer)
    in_order = zip(gold.items, answer.items, strict=False)
    return gold.marks == answer.marks and len(gold.items) == len(answer.items) and all(same(a, b) for a, b in in_order)


def same_value(gold: Tree, answer: Tree, num_chars: int) -> bool:
    """A number is wanted as a number; the answer's symbols must be the gold's."""
    used, allowed = operations(answer), operations(gold)
    if symbols(gold):
        allowed |= ALGEBRA
    elif gold[0] != "number":
        allowed |= ARITHMETIC
    return used <= allowed and symbols(answer) <= symbols(gold) and same_function(gold, answer, num_chars)


def same_equation(gold: Answer, answer: Answer) -> bool:
    """`x = 5` wants the value; `y = 2x + 3` may be `2x - y + 3 = 0`, and any equation a multiple of itself."""
    golden, given = as_equation(gold), as_equation(answer)
    if golden is None or given is None:
        return False
    allowed = operations(golden) | ALGEBRA
    return operations(given) <= allowed and proportional(golden, given, len(gold.text) + len(answer.text))


def as_equation(answer: Answer) -> Tree | None:
    """The tree that is 0; None for what is no equation between several symbols."""
    if answer.kind == "equation":
        return answer.tree
    if answer.kind == "value" and answer.name and symbols(answer.tree):
        return ("add", parse(answer.name), ("negate", answer.tree))
    return None


def same_ratio(gold: Answer, answer: Answer) -> bool:
    if not all(item.kind == "value" for side in (gold, answer) for item in side.items):
        return False
    golden, given = (("divide", *(item.tree for item in side.items)) for side in (gold, answer))
    num_chars = len(gold.text) + len(answer.text)
    return operations(given) <= operations(golden) and same_function(golden, given, num_chars)


def same_in_any_order(gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
    """Both without repeats."""
    return len(gold) == len(answer) and all(any(same(a, b) for b in answer) for a in gold)


def without_repeats(answer: Answer) -> Answer:
    """A list's distinct members, and the only member of a list of one."""
    if answer.kind != "list":
        return answer
    kept: list[Answer] = []
    for item in answer.items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    if len(kept) == 1:
        return kept[0]
    return Answer("list", answer.text, tuple(kept), name=answer.name, units=answer.units)
