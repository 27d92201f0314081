"""A run's folder under every kind of mishap: what is lost is named, what can be mended is, and nothing is silent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import LONG, SHORT, contents, run

from vineppo.runs.lock import LOCK
from vineppo.types import UserError


@pytest.mark.parametrize(
    "files",
    [["thesis.tex"], ["environment.json"], ["recipe.toml"], ["recipe.toml.part"], ["checkpoints/model.bin"],
     [".git/HEAD"], ["recipe.toml", "notes.txt"], ["metrics.jsonl"]],
)  # fmt: skip
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_no_run_stays_as_it_is(tmp_path, files, resume):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not empty and not a run"):
        run(SHORT, tmp_path, resume=resume)
    assert contents(tmp_path) == before


def drop_line(name: str, *numbers: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for i, line in enumerate(lines, 1) if i not in numbers))

    return damage


def edit(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().replace(old, new, 1))


def append(name: str, text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + text)


MENDED: dict[str, Callable[[Path], object]] = {
    "torn metrics": append("metrics.jsonl", b'{"iteration": 5, "rew'),
    "torn timings": append("timings.jsonl", b'{"iterat'),
    "killed before the line of the checkpoint": drop_line("metrics.jsonl", 3, 4),
    "killed between the two lines": drop_line("metrics.jsonl", 4),
    "no line of times": drop_line("timings.jsonl", 3, 4),
    "no times": lambda folder: (folder / "timings.jsonl").unlink(),
    "empty times": lambda folder: (folder / "timings.jsonl").write_text(""),
    "empty result": lambda folder: (folder / "result.json").write_text(""),
    "torn result": lambda folder: (folder / "result.json").write_text('{"pass@1": 0.'),
    "result is a list": lambda folder: (folder / "result.json").write_text("[]"),
    "half written": lambda folder: (folder / "checkpoints" / ".unfinished-iteration-000004").mkdir(),
    "half deleted": lambda folder: (folder / "checkpoints" / ".damaged-iteration-000003").mkdir(),
    "a part of a file": lambda folder: (folder / "metrics.jsonl.part").touch(),
    "a part of rollouts": lambda folder: (folder / "rollouts" / "iteration-000004.jsonl.gz.part").touch(),
    "no environment": lambda folder: (folder / "environment.json").unlink(),
    "a lock": lambda folder: (folder / LOCK).write_text("1\n"),
}  # fmt: skip
NAMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no metrics": (lambda folder: (folder / "metrics.jsonl").unlink(), r"the lines of 2 iterations from 1"),
    "empty metrics": (lambda folder: (folder / "metrics.jsonl").write_text(""), r"metrics.jsonl: the lines of"),
    "a lost line": (drop_line("metrics.jsonl", 2), r"metrics.jsonl: the line of iteration 2 is missing"),
    "cut": (drop_line("metrics.jsonl", 2, 3, 4), r"the line of iteration 2 is missing.*remove the checkpoints"),
    "twice": (append("metrics.jsonl", b'{"iteration": 3}\n'), r"metrics.jsonl:5: iteration 3 comes again"),
    "garbage": (edit("metrics.jsonl", b'{"iteration": 2', b"\0\0\0"), r"metrics.jsonl:2: not valid JSON"),
    "no text": (edit("metrics.jsonl", b'{"iteration": 2', b"\xff"), r"metrics.jsonl: not UTF-8"),
    "a list": (edit("metrics.jsonl", b'{"iteration": 2', b'[2]\n{"iteration": 2'), r"metrics.jsonl:2: expected"),
    "no number": (edit("metrics.jsonl", b'"iteration": 2', b'"iteration": "2"'), r"metrics.jsonl:2: iteration is"),
    "garbage times": (edit("timings.jsonl", b'{"iteration": 2', b"x"), r"timings.jsonl:2: not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_what_can_be_mended_ends_as_the_undisturbed_run(stopped, long, name):
    MENDED[name](stopped)
    run(LONG, stopped, resume=True)
    assert contents(stopped) == contents(long)
    numbers = [json.loads(line)["iteration"] for line in (stopped / "timings.jsonl").read_text().splitlines()]
    assert numbers == [1, 2, 3, 4]
    assert (stopped / "environment.json").exists()


@pytest.mark.parametrize("name", NAMED)
def test_what_is_lost_is_named_and_nothing_else_changes(stopped, name):
    damage, message = NAMED[name]
    damage(stopped)
    before = contents(stopped)
    with pytest.raises(UserError, match=message):
        run(LONG, stopped, resume=True)
    assert contents(stopped) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"iteration": 1}', None])
def test_a_finished_run_whose_result_is_lost_evaluates_again(short, tmp_path, text):
    folder = tmp_path / "run"
    shutil.copytree(short, folder)
    (folder / "result.json").unlink() if text is None else (folder / "result.json").write_text(text)
    run(SHORT, folder, resume=True)
    assert contents(folder) == contents(short)
