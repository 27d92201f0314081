"""A bounded fuzz campaign, and that its judge would notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import CLASSES, judge
from fuzz_cases import Case

HERE = Path(__file__).parent
NUM_CASES = 48


def test_what_is_damaged_mistyped_or_hostile_is_refused_in_one_line_or_does_no_harm(tmp_path):
    command = [sys.executable, str(HERE / "fuzz.py"), "--cases", str(NUM_CASES), "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode in (0, 1), ended.stderr
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert result["failed"] == [], ended.stdout
    assert result["outcomes"].keys() == CLASSES.keys()
    verdicts = [verdict for row in result["outcomes"].values() for verdict in row.items()]
    assert sum(count for _, count in verdicts) == NUM_CASES
    for verdict in ("right", "refused"):  # the cases are neither all harmless nor all hopeless
        assert sum(count for name, count in verdicts if name == verdict) >= NUM_CASES // 8


def code(number: int) -> int:
    return number << 8


@pytest.mark.parametrize(
    ("status", "out", "err", "verdict"),
    [
        (code(0), "done\n", "", "right"),
        (code(0), "lost\n", "", "silent loss"),
        (code(2), "", "a warning\nvineppo: r.toml: no such recipe\n", "refused"),
        (code(2), "", "usage: vineppo ...\nvineppo train: error: argument --out: '' is empty\n", "refused"),
        (code(2), "", "", "refused without one line"),
        (code(2), "", "vineppo: r.toml: x\nvineppo: r.toml: y\n", "refused without one line"),
        (code(2), "", "vineppo: something went wrong\n", "refused without one line"),
        (code(1), "", "Traceback (most recent call last):\nKeyError: 'a'\n", "traceback"),
        (code(2), "Traceback (most recent call last):\n", "vineppo: r.toml: x\n", "traceback"),
        (code(1), "", "oh\n", "exit code 1"),
        (code(2), "", "vineppo: \x1b[2Jr.toml: x\n", "escape sequence"),
        (signal.SIGSEGV, "", "", "killed by SIGSEGV"),
        (signal.SIGXCPU, "", "", "hang"),
        (None, "", "", "hang"),
    ],
)
def test_the_judge(status, out, err, verdict, tmp_path):
    (tmp_path / ".stdout").write_text(out)
    (tmp_path / ".stderr").write_text(err)
    case = Case(["train", "recipe"], "", lambda said: "a line is missing" if "lost" in said else None)
    assert judge("recipes:0", case, tmp_path, status, []).verdict == verdict
    if verdict in ("right", "refused"):
        assert judge("recipes:0", case, tmp_path, status, ["precious"]).verdict.startswith("touched")


def test_a_check_that_fails_is_no_right_result(tmp_path):
    case = Case(["train"], "", lambda said: os.fspath(tmp_path / "none") and (tmp_path / "none").read_text())
    assert judge("recipes:0", case, tmp_path, code(0), []).verdict == "silent loss"
