"""What the interpreter is asked to do while an answer is graded."""

from __future__ import annotations

import re
import sys
from collections import Counter
from types import CodeType
from typing import Any

from vineppo.tasks.math import MATH
from vineppo.types import Grade, Problem

FORBIDDEN = (
    *("exec", "compile", "import", "open", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.", "code."),
)
LITERAL = re.compile(rb"\s*(Integer|Float|Symbol|Rational|Number)\s*\(\s*'?[\w.+-]+'?(\s*,[\w=' ]+)?\s*\)\s*")
LITERALS = {"Integer", "Float", "Symbol", "Rational", "Number", "precision"}
NAMES = b"from sympy import *"
"""How sympy fetches these functions, whatever the answer."""


def harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    """sympy reads a number or a name by compiling the call that makes it, and nothing else."""
    if event == "compile":
        source = arguments[0]
        source = source.encode() if isinstance(source, str) else source or b""
        return source == NAMES or LITERAL.fullmatch(source) is not None
    code = arguments[0] if arguments else None
    return event == "exec" and isinstance(code, CodeType) and set(code.co_names) <= {*LITERALS, "sympy"}


class Watch:
    """Counts what is forbidden while it is on: an audit hook cannot be taken away again."""

    def __init__(self) -> None:
        self.on, self.seen = False, Counter[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event.startswith(FORBIDDEN) and not harmless(event, arguments):
            self.seen[f"{event} {str(arguments[0])[:60] if arguments else ''}"] += 1


class WatchedMATH(MATH):
    """In a worker process; what ran is a crash there, so that it is counted."""

    def prepare(self) -> None:
        super().prepare()
        self.watch = Watch()

    def grade(self, problem: Problem, response: str) -> Grade:
        self.watch.on = True
        try:
            grade = super().grade(problem, response)
        finally:
            self.watch.on = False
        if self.watch.seen:
            what, self.watch.seen = next(iter(self.watch.seen)), Counter()
            raise RuntimeError(f"{what} ran for {response[:200]!r}")
        return grade
