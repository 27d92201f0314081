"""Names and texts that try to command the terminal: whatever is printed has them as harmless text, as they are."""

from __future__ import annotations

import json
import logging
import warnings
from io import StringIO
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console
from tiny import RECIPE

from vineppo.cli import main
from vineppo.cli.quickstart import worked
from vineppo.machine.tables import aligned
from vineppo.machine.terminal import echo, printable, tame
from vineppo.methods import load_recipe
from vineppo.methods.train import TrainRecipe
from vineppo.report import try_report

NAME = "a[b]c[\\b] [red]d[link=x] :bomb: \x1b]0;title\x07\x1b[2J\x9b2J\u202etxt\r\x08"
PATH_ON_SCREEN = printable(NAME)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(RECIPE | {"train": {"num_iterations": 1, "num_epochs": 1, "minibatch_size": 4}}))
    return path


def run(capsys, *argv: object) -> tuple[int, str]:
    """The exit code and all that was printed; of control characters there may be line breaks and tabs."""
    capsys.readouterr()
    try:
        code = main([str(arg) for arg in argv])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    said = "".join(capsys.readouterr())
    assert printable(said) == said
    assert "Traceback" not in said
    return code, said


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "RECIPE", f"model.name={NAME}", "--out", "OUT"],
        ["train", "RECIPE", f"task.path={NAME}", "--out", "OUT"],
        ["train", "RECIPE", f"task.name={NAME}", "--out", "OUT"],
        ["train", "RECIPE", f"credit.{NAME}=1", "--out", "OUT"],
        ["train", "RECIPE", f"name={NAME}", "--out", "RECIPE"],
        ["train", "RECIPE", f"--{NAME}"],
        ["train", "RECIPE", "--resume", "--out", NAME],
        ["train", NAME],
        ["sft", "RECIPE", NAME],
        ["eval", "RECIPE", "--model", NAME],
        ["eval", "RECIPE", "--json", f"{NAME}/x.json"],
        ["exact", "--json", f"{NAME}/x.json"],
        ["report", NAME],
        ["report", "RECIPE"],
        ["compare", NAME, "--out", "OUT"],
        ["compare", "RECIPE", "--seeds", NAME],
        ["analyze", NAME, "--kind", "kl"],
        ["analyze", "RECIPE", "--kind", NAME],
        ["analyze", NAME, "--kind", "all"],
        ["config", "show", NAME],
        ["config", "diff", "RECIPE", NAME],
        ["quickstart", "--out", "RECIPE", "--device", NAME],
        [NAME],
    ],
    ids=lambda argv: " ".join(argv[:2]).replace(NAME, "NAME"),
)
def test_a_mistake_is_told_in_plain_text(recipe, tmp_path, capsys, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    code, _ = run(capsys, *(arg.replace("RECIPE", str(recipe)).replace("OUT", str(tmp_path / "out")) for arg in argv))
    assert code == 2


def test_a_run_of_such_a_name_is_trained_shown_and_compared(recipe, tmp_path, capsys):
    out = tmp_path / NAME
    code, said = run(capsys, "train", recipe, "--out", out)
    assert code == 0, said
    assert f"report: {tmp_path / PATH_ON_SCREEN / 'report.html'}\n" in said
    code, said = run(capsys, "train", recipe, "--out", out, "--resume")
    assert f"{tmp_path / PATH_ON_SCREEN} was finished already" in said
    code, said = run(capsys, "compare", out, "--out", tmp_path / f"compared {NAME}")
    assert code == 0, said
    assert PATH_ON_SCREEN in said
    code, said = run(capsys, "analyze", out, "--kind", "advantage_distribution")
    assert code == 0, said
    assert f"all of it: {tmp_path / PATH_ON_SCREEN / 'analysis'}" in said


def test_a_recipe_is_shown_as_a_recipe(recipe, tmp_path, capsys):
    code, said = run(capsys, "config", "show", recipe, f"sampling.stop=[{json.dumps(NAME)}]")
    assert code == 0, said
    again = tmp_path / "again.toml"
    again.write_text(said)
    recipe_again = load_recipe(again)
    assert isinstance(recipe_again, TrainRecipe)
    assert recipe_again.sampling.stop == (NAME,)
    code, said = run(capsys, "config", "diff", recipe, again)
    assert code == 0, said
    assert said.startswith("sampling.stop: ")


def test_a_rollout_of_such_texts_is_shown(capsys):
    rollout = {
        "prompt": NAME, "segments": [NAME], "values": [0.5, 0.0], "standard_errors": [0.1], "advantages": [-0.5],
        "reward": 0.0, "answer": NAME,
    }  # fmt: skip
    screen = StringIO()
    Console(file=screen, width=500).print(worked(rollout))
    assert printable(screen.getvalue()) == screen.getvalue()
    assert printable(NAME.strip()) in screen.getvalue()


def test_the_report_that_was_not_written_is_told_in_plain_text(tmp_path, capsys):
    echo(try_report(tmp_path / NAME))
    said = capsys.readouterr().out
    assert said.startswith("report: not written")
    assert PATH_ON_SCREEN in said
    assert printable(said) == said


def test_libraries_warn_in_plain_text(monkeypatch):
    stream = StringIO()
    logger = logging.Logger("library")
    logger.addHandler(logging.StreamHandler(stream))
    for _ in range(2):
        tame(logger)
    logger.warning("\x1b[31mloading %s\x1b[0m", NAME)
    assert stream.getvalue() == f"loading {PATH_ON_SCREEN}\n"
    assert PATH_ON_SCREEN in warnings.formatwarning(NAME, UserWarning, "file.py", 1, "")


def test_a_table_is_plain_and_aligned():
    rows = [{"name": NAME, "value": 0.12345, "n": 3}, {"name": "b", "value": None, "n": 12_000}]
    first, second, third = aligned(rows).splitlines()
    assert len(first) == len(second) == len(third)
    assert second == f"{PATH_ON_SCREEN}  0.123      3"
    assert third.endswith("      -  12000")
