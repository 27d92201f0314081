"""The tests of a problem, and how many of them a program passes. Nothing that decides runs where the program does.

calls     a function is called; the value that comes back is compared here
streams   the whole program is run on an input; its output is compared here
script    tests that are Python: they run in a sandbox of their own, and ask the program's for each call
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vineppo.sandbox import Sandbox
from vineppo.tasks.programs.values import pack, unpack, write

LOST = write({"error": "TimeoutError", "message": "the program is gone"})
Call = tuple[str, list[Any], Any]  # function, arguments, expected value; the last two as values.py packs them
Stream = tuple[str, str]  # input, expected output


class Score(NamedTuple):
    num_passed: int
    num_tests: int


@dataclass(frozen=True)
class Script:
    """Tests in Python. `functions` are those under test, `setup` is what the tests need besides; there are at least
    `num_tests`."""

    source: str
    functions: Sequence[str]
    num_tests: int
    setup: str = ""


@dataclass(frozen=True)
class UnitTests:
    """Of one kind or several; `Problem.answer` has them as JSON."""

    calls: Sequence[Call] = ()
    streams: Sequence[Stream] = ()
    scripts: Sequence[Script] = field(default=())

    def score(self, sandbox: Sandbox, program: str) -> Score:
        parts = [script_score(sandbox, program, script) for script in self.scripts]
        if self.calls:
            parts.append(Score(calls_passed(sandbox, program, self.calls), len(self.calls)))
        if self.streams:
            parts.append(Score(streams_passed(sandbox, program, self.streams), len(self.streams)))
        return Score(sum(part.num_passed for part in parts), sum(part.num_tests for part in parts))

    def write(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> UnitTests | None:
        """None for a text that `write` did not write, such as a program."""
        try:
            found = json.loads(text)
            return cls(found["calls"], found["streams"], [Script(**script) for script in found["scripts"]])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def make_call(function: str, arguments: Sequence[Any], expected: Any) -> Call:
    packed: Any = pack(list(arguments))
    return function, packed, pack(expected)


def calls_passed(sandbox: Sandbox, program: str, calls: Sequence[Call]) -> int:
    """Each call is sent once the one before is answered. A program that is gone answers no more."""
    num_passed = 0
    with sandbox.start(candidate(program)) as process:
        for function, arguments, expected in calls:
            process.send(write({"function": function, "arguments": arguments}))
            reply = process.read_line()
            if reply is None:
                break
            num_passed += is_value(reply, expected)
    return num_passed


def is_value(reply: str, expected: Any) -> bool:
    """Whether a candidate's reply, which may be anything, is the value."""
    try:
        return bool(unpack(json.loads(reply)["value"]) == unpack(expected))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def streams_passed(sandbox: Sandbox, program: str, streams: Sequence[Stream]) -> int:
    """White space does not count. Where the program takes too long once, it is not tried again."""
    num_passed = 0
    for given, expected in streams:
        finished = sandbox.run(program, stdin=given)
        num_passed += finished.succeeded and finished.stdout.split() == expected.split()
        if finished.outcome == "timeout":
            break
    return num_passed


def script_score(sandbox: Sandbox, program: str, script: Script) -> Score:
    """Two sandboxes, and this process between them: it hands on questions and replies, and reads the result."""
    patience = 2 * sandbox.limits.timeout_s  # the program's own time is over before the tests' is
    exam = examiner(script.setup, script.source, script.functions)
    with sandbox.start(candidate(program)) as answering, sandbox.start(exam, timeout_s=patience) as asking:
        while (line := asking.read_line()) is not None:
            message = json.loads(line)
            if "function" not in message:
                passed, failed = message["passed"], message["failed"]
                least = passed + failed if message["finished"] else max(script.num_tests, passed + failed + 1)
                return Score(passed, max(1, least))
            answering.send(f"{line}\n")
            reply = answering.read_line()
            asking.send(LOST if reply is None else f"{reply}\n")
    return Score(0, max(1, script.num_tests))


def candidate(program: str) -> str:
    return f"{inside('values')}\n{inside('candidate')}\nserve({program!r})"


def examiner(setup: str, script: str, functions: Sequence[str]) -> str:
    return f"{inside('values')}\n{inside('examiner')}\nexamine({setup!r}, {script!r}, {list(functions)!r})"


@cache
def inside(name: str) -> str:
    """The text of a file beside this one, without the import of the other: they are one program inside."""
    text = (Path(__file__).parent / f"{name}.py").read_text()
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("from vineppo."))
