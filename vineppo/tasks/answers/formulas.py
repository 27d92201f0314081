"""Whether an answer is the gold formula: our own reader says so, or math-verify where it cannot read the gold."""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import Any

from vineppo.tasks.answers.equality import equal_answers, is_readable
from vineppo.tasks.answers.reading import compact, tidy
from vineppo.types import Problem, UserError

COMMAND = re.compile(r"\\[a-zA-Z]+|[=<>_:^!]")
BRACKET = re.compile(r"[(\[{|]")
OPERATION = re.compile(r"(?<=.)[-+*/^!(]|\\frac|\\sqrt|\\cdot|\\times")
FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\[(.*?)\\\]|\\\((.*?)\\\)", re.DOTALL)


def check_library() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise UserError('math-verify is needed to grade formulas: pip install "vineppo[math]"')


def warm_up() -> None:
    """Imports and warms what grading uses, so that the first answer does not pay for it."""
    assert equal_answers(r"\sqrt{8}", r"2\sqrt2")
    for answer in (r"\overline{CD}", r"\overline{AB}", "5", "x", "(1,2)"):  # what sympy imports by need
        assert library_equal(r"\overline{CD}", answer) == (answer == r"\overline{CD}")
        library_equal(r"\lim_{x \to 0} x", answer)
        library_equal(r"\lim_{x \to 0} x", r"\lim_{x \to 0} 2x")


def is_right(problem: Problem, gold: str, answer: str) -> bool:
    return math_equal(gold, answer) and not is_from_question(problem, gold, answer)


def math_equal(gold: str, answer: str) -> bool:
    return equal_answers(gold, answer) or (not is_readable(gold) and library_equal(gold, answer))


def library_equal(gold: str, answer: str) -> bool:
    """math-verify's opinion on golds that we cannot read, where the answer uses nothing that the gold does not.

    Without the library's own time limits, which need the main thread's signals: the worker pool has the limit.
    """
    if gold.isascii() and not answer.isascii():  # it takes any script's digits for numbers
        return False
    nested = len(BRACKET.findall(answer)) > len(BRACKET.findall(gold)) + 4  # each costs its parser several times more
    if nested or len(answer) > 2 * len(gold) + 50 or not set(COMMAND.findall(answer)) <= set(COMMAND.findall(gold)):
        return False
    import math_verify  # half a second, and only workers need it

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit

    options: dict[str, Any] = {"parsing_timeout": None, "fallback_mode": "first_match"}
    parsed = [math_verify.parse(f"\\boxed{{{text}}}", **options) for text in (gold, answer)]
    return bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=None))


def is_from_question(problem: Problem, gold: str, answer: str) -> bool:
    """Whether the answer is a formula of the question with its work left to do, rather than the gold's own words."""
    given = compact(tidy(answer))
    if given == compact(tidy(gold)) or not OPERATION.search(given.rpartition("=")[2]):
        return False
    formulas = ["".join(groups) for groups in FORMULA.findall(problem.prompt)]
    return any(given == compact(tidy(side)) for formula in formulas for side in (formula, *formula.split("=")))
