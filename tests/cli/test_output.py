"""Where the output goes is the user's affair: a pipe whose reader has gone is no mistake, and a full disk is told in
one line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vineppo.cli import commands, main

RECIPE = str(Path(__file__).parent.parent.parent / "recipes" / "compare" / "grpo.toml")


def run(*argv: str, stdout: int) -> tuple[int, str]:
    """Exit code, and what was complained of."""
    done = subprocess.run(
        [sys.executable, "-m", "vineppo.cli", *argv], stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["doctor"], 1), (["config", "show", RECIPE], 1), (["--help"], 0), (["train", "--help"], 0)],
    ids=str,
)
def test_a_reader_that_has_seen_enough_is_no_mistake(argv, code):
    reader, writer = os.pipe()
    os.close(reader)
    assert run(*argv, stdout=writer) == (code, "")
    os.close(writer)


def test_an_output_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        code, said = run("config", "show", RECIPE, stdout=full.fileno())
    assert code == 2
    assert said.startswith("vineppo: No space left on device")
    assert said.count("\n") == 1


def test_an_output_that_is_closed_from_the_start_is_no_mistake():
    command = f"{sys.executable} -m vineppo.cli config show {RECIPE} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_pipe_that_breaks_is_one(monkeypatch, capfd):
    def break_pipe(_) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(commands, "run_doctor", break_pipe)
    assert main(["doctor"]) == 2
    assert capfd.readouterr().err == "vineppo: Broken pipe\n"
