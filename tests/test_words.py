"""One word for one thing, and the field's: names that were given up do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for room in ("vineppo", "benchmarks", "scripts") for path in sorted((ROOT / room).rglob("*.py"))]

GIVEN_UP = {
    "say": "echo",
    "speaker": "echo_above",
    "Stepper": "OptimizerStep",
    "StepperConfig": "OptimizerStepConfig",
    "Siblings": "GroupBaseline",
    "Parts": "CreditContext",
    "seat": "slot",
    "Wave": "BatchPlan",
    "kept_logmass": "nucleus_logmass",
    "Ending": "GradedCompletion",
    "told": "what it is: context, header, facts",
    "due": "is_due",
}
REST = {"told"}
"""Still to be replaced somewhere. A word that is gone everywhere is struck off here."""


def names(path: Path) -> set[str]:
    """All that is defined, assigned or passed by name in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg | ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


@pytest.fixture(scope="module")
def used() -> dict[str, list[str]]:
    """Given-up word -> files that have it."""
    found: dict[str, list[str]] = {}
    for path in FILES:
        for name in names(path) & GIVEN_UP.keys():
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def test_no_name_is_one_that_was_given_up(used):
    wrong = {f"{name} (say {GIVEN_UP[name]})": files for name, files in used.items() if name not in REST}
    assert not wrong


def test_what_is_left_to_replace_is_still_there(used):
    assert used.keys() >= REST, f"struck off? {REST - used.keys()}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_not_called_after_nothing(path):
    assert not re.search(r"\b(utils?|helpers?|misc)\b", path.stem)
