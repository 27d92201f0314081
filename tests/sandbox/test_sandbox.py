"""What a program meets in the sandbox: its input, its limits, and nothing that differs from run to run."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

import vineppo.sandbox.backends
import vineppo.sandbox.sandbox
from vineppo.sandbox import Limits, Sandbox, SandboxError
from vineppo.sandbox.system_calls import SOME_ARGUMENTS, SYSTEM_CALLS
from vineppo.types import UserError

HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")


def test_input_and_output_are_the_programs_own(sandbox):
    finished = sandbox.run("import sys\nprint(input(), sys.stdin.read(), sys.argv, __name__)", stdin="a\nb")
    assert finished.stdout == "a b ['program.py'] __main__\n"
    assert finished.succeeded


def test_errors_are_of_the_programs_own_lines(sandbox):
    finished = sandbox.run("x = 1\nx / 0")
    assert not finished.succeeded
    assert (finished.outcome, finished.exit_code, finished.stdout) == ("ended", 1, "")
    assert re.findall(r'File "(.*)", line (\d+)', finished.errors) == [("program.py", "2")]
    assert finished.errors.endswith("ZeroDivisionError: division by zero\n")
    assert sandbox.run("x = (1,").errors.endswith("SyntaxError: '(' was never closed\n")
    assert sandbox.run("raise SystemExit(3)").exit_code == 3


def test_errors_behind_a_closed_output_are_read(sandbox):
    finished = sandbox.run("import os, time\nprint(1, flush=True)\nos.close(1)\ntime.sleep(0.2)\n1 / 0")
    assert finished.stdout == "1\n"
    assert "ZeroDivisionError: division by zero\n" in finished.errors


def test_output_that_is_no_text_is_read_all_the_same(sandbox):
    assert sandbox.run("import os\nos.write(1, b'\\xff\\x00a\\xc3')").stdout == "\ufffd\0a\ufffd"
    assert sandbox.run("print('数')").stdout == "数\n"
    assert sandbox.run("'\ud800'").succeeded  # half a character in the program


def test_input_that_nobody_reads_keeps_nobody_waiting(sandbox):
    assert sandbox.run("print(1)", stdin="x" * 3_000_000).stdout == "1\n"
    big = sandbox.run("import sys\nprint(len(sys.stdin.read()))", stdin="x" * 3_000_000)
    assert big.stdout == "3000000\n"


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("while True: pass", "timeout"),
        ("import os\nwhile True: os.write(1, b'x' * 1000)", "output"),
        ("import os\nwhile True: os.write(2, b'x' * 1000)", "output"),
        ("import ctypes\nctypes.string_at(0)", "killed"),
        ("def f(): f()\nf()", "ended"),
        ("import os\nos._exit(0)", "ended"),
    ],
)
def test_outcomes(sandbox, program, outcome):
    finished = sandbox.run(program)
    assert finished.outcome == outcome
    assert len(finished.stdout) <= 8 << 10
    assert outcome == "ended" or not finished.succeeded


def test_sleep_ends_on_the_clock_even_behind_a_closed_output(sandbox):
    quick = replace(sandbox, limits=Limits(timeout_s=0.5))
    for program in ("import time\ntime.sleep(1000)", "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)"):
        assert quick.run(program).outcome == "timeout"


def test_a_program_repeats_what_it_said(sandbox):
    program = "import random\nprint(random.random(), {str(n) for n in range(50)}, hash('a'), id)\n"
    first = sandbox.run(program)
    assert first.succeeded
    assert first.stdout == sandbox.run(program).stdout
    assert "urandom" in sandbox.run("import secrets\nprint(secrets.token_hex())").errors


def test_it_talks_line_by_line(sandbox):
    with sandbox.start("print('hello')\nwhile True: print(input()[::-1], flush=True)") as process:
        process.send("abc\n")
        assert [process.read_line(), process.read_line()] == ["hello", "cba"]
        process.send("x" * 5_000 + "\n")
        assert process.read_line() == "x" * 5_000
        process.close_input()
        assert process.read_line() is None  # EOFError
        assert process.end() == ("ended", 1)


def test_it_can_be_sent_to_another_process(sandbox):
    assert pickle.loads(pickle.dumps(sandbox)) == sandbox


def test_no_backend_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(vineppo.sandbox.sandbox, "is_possible", lambda backend: backend == "none")
    with pytest.raises(UserError, match=r'bubblewrap.*vineppo\[sandbox\].*task.sandbox = "none"'):
        Sandbox.make("auto", Limits())
    assert Sandbox.make("none", Limits()).run("print(1)").stdout == "1\n"


def test_the_fallback_says_so(monkeypatch):
    monkeypatch.setattr(vineppo.sandbox.sandbox, "is_possible", lambda backend: backend == "landlock")
    if not Sandbox("landlock", Limits()).works():
        pytest.skip("landlock does not work here")
    with pytest.warns(UserWarning, match="Landlock"):
        assert Sandbox.make("auto", Limits()).backend == "landlock"


def test_a_sandbox_that_cannot_start_runs_no_program(monkeypatch, tmp_path, sandbox):
    """An interpreter that fails before it is ready, as one without its library does."""
    monkeypatch.setattr(vineppo.sandbox.backends, "boot", lambda: "raise OSError('no lock')")
    marker = tmp_path / "ran"
    with pytest.raises(SandboxError, match="no lock"):
        sandbox.run(f"open({str(marker)!r}, 'w')")
    assert not marker.exists()


@pytest.mark.parametrize("limits", [{"cpu_s": 0}, {"timeout_s": 0.0}, {"memory_mb": 1}, {"output_kb": 0}])
def test_limits_have_limits(limits):
    with pytest.raises(ValidationError):
        Limits.model_validate(limits)


@pytest.mark.parametrize("column", [0, 1], ids=["x86_64", "aarch64"])
def test_numbers_of_system_calls_are_the_kernels(column):
    header = Path(HEADERS[column])
    if not header.exists():
        pytest.skip("no kernel headers")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    known |= {"newfstatat": known.get("newfstatat", known.get("fstatat"))}
    numbers = {name: both[column] for name, both in SYSTEM_CALLS.items()}
    numbers |= {name: both[column] for name, (both, _, _) in SOME_ARGUMENTS.items()}
    assert {name: str(number) for name, number in numbers.items() if number is not None} == {
        name: known[name] for name, number in numbers.items() if number is not None
    }
