"""No file longer than 400 lines, no function longer than 40: what is longer has more than one idea."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE, MAX_FUNCTION = 400, 40
FILES = [path for folder in ("vineppo", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
TO_SPLIT = {
    "benchmarks/against_trl.py:measure_trl",
    "benchmarks/figures_results.py:accuracy",
    "benchmarks/grading.py:main",
    "benchmarks/grading_accuracy.py:right_answers",
    "benchmarks/grading_accuracy.py:wrong_answers",
    "tests/fuzz_arguments.py:fuzz_arguments",
    "tests/runs/test_recipe.py:numbers_of",
}
"""What is still too long; it may only shrink."""


def too_long(path: Path) -> set[str]:
    """The file as it is called, and its functions as FILE:NAME, counted from `def` to their last line."""
    text, name = path.read_text(), path.relative_to(ROOT).as_posix()
    found = {name} if text.count("\n") > MAX_FILE else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
                found.add(f"{name}:{node.name}")
    return found


def test_nothing_is_longer_than_a_screen_or_two():
    found = set().union(*map(too_long, FILES))
    assert not found - TO_SPLIT, "split what is new here"
    assert not TO_SPLIT - found, "no longer too long: take it off the list"
