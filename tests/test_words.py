"""One word for one thing, and the field's: names that were given up do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for room in ("vineppo", "benchmarks", "scripts", "tests") for path in sorted((ROOT / room).rglob("*.py"))]

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
    "endings": "completions",
    "told": "what it is: context, header, facts",
    "draw": "rng for a generator, sample_... for what samples",
    "keep_right": "keep_correct",
    "due": "is_due",
}


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


def test_no_name_is_one_that_was_given_up():
    found = {path.relative_to(ROOT).as_posix(): names(path) & GIVEN_UP.keys() for path in FILES}
    wrong = [f"{path}: {name} (say {GIVEN_UP[name]})" for path, given_up in found.items() for name in given_up]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_not_called_after_nothing(path):
    assert not re.search(r"\b(utils?|helpers?|misc)\b", path.stem)
