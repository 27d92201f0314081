"""No file longer than 400 lines, no function longer than 40: what is longer has more than one idea."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE, MAX_FUNCTION = 400, 40
FILES = [path for folder in ("vineppo", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]


def too_long(path: Path, root: Path = ROOT) -> set[str]:
    """The file as it is called, and its functions as FILE:NAME, counted from `def` to their last line."""
    text, name = path.read_text(), path.relative_to(root).as_posix()
    found = {name} if text.count("\n") > MAX_FILE else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
                found.add(f"{name}:{node.name}")
    return found


def test_nothing_is_longer_than_a_screen_or_two():
    assert not set().union(*map(too_long, FILES))


def test_one_line_more_is_found(tmp_path):
    path = tmp_path / "long.py"
    for lines in (MAX_FUNCTION, MAX_FUNCTION + 1):
        path.write_text("def f():\n" + "    pass\n" * (lines - 1))
        assert too_long(path, tmp_path) == ({"long.py:f"} if lines > MAX_FUNCTION else set())
    for lines in (MAX_FILE, MAX_FILE + 1):
        path.write_text("pass\n" * lines)
        assert too_long(path, tmp_path) == ({"long.py"} if lines > MAX_FILE else set())
