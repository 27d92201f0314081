"""No code that came with a run, or that only a run names, is run; the user has to name it. See docs/security.md."""

from __future__ import annotations

import py_compile
import re
import shutil
from pathlib import Path

import pytest
import tomli_w
from tiny import METHODS, SFT, START, run

from vineppo.cli import main
from vineppo.config import read_toml
from vineppo.parts import load_part

EVIL = """
from pathlib import Path
from vineppo.tasks.arithmetic import Arithmetic

Path({marker!r}).touch()

class Evil(Arithmetic):
    pass

def evil(response):
    return 1.0
"""
TREE = METHODS["grpo"] | {"name": "grpo", "model": START}
SHORT = TREE | {"train": TREE["train"] | {"num_iterations": 1}, "checkpoint": {"every": 1, "keep_last": 1}}


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    return run(SHORT, tmp_path_factory.mktemp("honest") / "run").parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def marker(here) -> Path:
    """Is there once the code of evil.py has run."""
    return here / "evil has run"


@pytest.fixture
def sent(here, honest, marker) -> Path:
    """A folder as somebody sends it: a run whose recipe names evil.py, which lies in it and beside it."""
    shutil.copytree(honest, here / "sent")
    for folder in (here, here / "sent", here / "sent" / "checkpoints"):
        (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    return here / "sent"


def name_evil(sent: Path, place: str, section: str = "task") -> None:
    tree = read_toml(sent / "recipe.toml")
    tree[section] |= {"name": place}
    (sent / "recipe.toml").write_text(tomli_w.dumps(tree))


def complaint(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    return capsys.readouterr().err


PLACES = ["evil.py:Evil", "./sent/evil.py:Evil", "sent/checkpoints/evil.py:Evil", "evil:Evil", "sent.evil:Evil"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("section", ["task", "engine", "credit"])
def test_no_command_runs_what_a_run_names(sent, marker, capsys, monkeypatch, place, section):
    monkeypatch.syspath_prepend(".")
    name_evil(sent, place, section)
    own = sent.parent / "own.toml"
    own.write_text(tomli_w.dumps(SHORT))
    commands: list[list[str]] = [
        ["config", "show", "sent/recipe.toml"],
        ["config", "diff", "sent/recipe.toml", "own.toml"],
        ["eval", "sent/recipe.toml", "--model", "sent"],
        ["train", "sent/recipe.toml", "--out", "sent", "--resume"],
        ["train", "sent/recipe.toml", "--out", "new"],
        ["train", "own.toml", "--out", "sent", "--resume"],
        ["analyze", "sent", "--kind", "value_accuracy"],
        ["analyze", "sent", "--kind", "advantage_distribution"],
    ]
    for command in commands:
        assert "code that a run names is run only if you name it too" in complaint(capsys, *command), command
    shutil.copytree(sent, sent.parent / "compared" / "grpo-seed0")
    assert "code that a run names" in complaint(capsys, "compare", "own.toml", "--out", "compared")
    assert main(["report", "sent"]) == 0
    assert main(["compare", "sent", "--out", "other"]) == 0
    assert main(["eval", "own.toml", "--model", "sent"]) == 0
    assert not marker.exists()


@pytest.mark.parametrize("task", [{"grader": "evil.py:evil"}, {"rewards": {"a": {"function": "evil.py:evil"}}}])
def test_no_command_runs_functions_that_a_run_names(sent, marker, capsys, task):
    tree = read_toml(sent / "recipe.toml")
    tree["task"] = {"name": "qa", "path": "data"} | task
    (sent / "recipe.toml").write_text(tomli_w.dumps(tree))
    commands: list[list[str]] = [
        ["config", "show", "sent/recipe.toml"],
        ["check-task", "sent/recipe.toml"],
        ["eval", "sent/recipe.toml", "--model", "sent"],
        ["train", "sent/recipe.toml", "--out", "new"],
    ]
    for command in commands:
        said = complaint(capsys, *command)
        assert re.search(r"task\.(grader|rewards\.a\.function) = 'evil.py:evil': code that a run names", said), command
    assert not marker.exists()
    key = "task.grader" if "grader" in task else "task.rewards.a.function"
    assert main(["config", "show", "sent/recipe.toml", f"{key}=evil.py:evil"]) == 0
    assert marker.exists()


def test_a_link_to_a_run_is_that_run(sent, marker, capsys):
    name_evil(sent, "evil.py:Evil")
    (sent.parent / "link").symlink_to(sent)
    (sent.parent / "linked.toml").symlink_to(sent / "recipe.toml")
    for recipe in ("link/recipe.toml", "linked.toml", "sent/checkpoints/../recipe.toml"):
        assert "code that a run names" in complaint(capsys, "config", "show", recipe)
    assert not marker.exists()


@pytest.mark.parametrize("place", ["sent/evil.py", "sent/checkpoints/evil.py", "link.py", "linked/evil.py"])
def test_a_file_in_a_run_is_refused_even_where_the_user_names_it(sent, marker, capsys, place):
    (sent.parent / "link.py").symlink_to(sent / "evil.py")
    (sent.parent / "linked").symlink_to(sent / "checkpoints")
    own = sent.parent / "own.toml"
    own.write_text(tomli_w.dumps(SHORT | {"task": {"name": f"{place}:Evil"}}))
    said = complaint(capsys, "config", "show", "own.toml")
    assert f"lies in the run {sent}, and code that came with a run is not run; copy it out" in said
    assert not marker.exists()


@pytest.mark.parametrize("left_out", ["environment.json", "metrics.jsonl", "checkpoints"])
def test_a_run_that_hides_what_it_is_is_one(sent, marker, capsys, left_out):
    name_evil(sent, "evil.py:Evil")
    path = sent / left_out
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "code that a run names" in complaint(capsys, "config", "show", "sent/recipe.toml")
    assert not marker.exists()


def test_compiled_code_beside_a_file_is_not_run(here, marker, capsys):
    """It may be of another source, and say that nobody need compare them."""
    (here / "own.py").write_text(EVIL.format(marker=str(marker)))
    cached = py_compile.compile("own.py", doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert cached is not None
    (here / "own.py").write_text(EVIL.format(marker=str(here / "own has run")))
    load_part("own.py:Evil", "test")
    assert not marker.exists()
    assert (here / "own has run").exists()


def test_what_the_user_names_is_run(sent, marker, capsys):
    name_evil(sent, "evil.py:Evil")
    assert main(["analyze", "sent", "--kind", "value_accuracy", "num_problems=2", "--part", "evil.py:Evil"]) == 0
    assert marker.exists()


def test_an_override_names_too(sent, marker):
    name_evil(sent, "nowhere.py:Gone")
    assert main(["eval", "sent/recipe.toml", "--model", "sent", "task.name=evil.py:Evil"]) == 0
    assert marker.exists()


def test_a_models_folder_brings_no_part_along(here, sent, marker):
    """A run that starts from another reads its weights alone."""
    name_evil(sent, "evil.py:Evil")
    assert main(["config", "show", "own.toml"]) == 2
    run(SFT | {"model": {"name": "sent"}, "sft": {"num_problems": 8, "num_epochs": 1}}, here / "next")
    assert not marker.exists()
