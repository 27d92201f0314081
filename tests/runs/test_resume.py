"""A run goes on from its newest whole checkpoint; what is damaged, or another run's, is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import LONG, SHORT, contents, run
from tiny import RECIPE

from vineppo.runs.checkpoint import write_checksums
from vineppo.types import UserError


@pytest.mark.parametrize("stray", ["iteration-000003-good", "iteration-000009.bak", "iteration-9", "iteration-x"])
def test_copies_and_files_beside_the_checkpoints_are_no_checkpoints(stopped, long, stray):
    last = stopped / "checkpoints" / "iteration-000003"
    shutil.copytree(last, stopped / "checkpoints" / stray)
    (stopped / "checkpoints" / "iteration-000007").write_text("a file")
    run(LONG, stopped, resume=True)
    assert (stopped / "checkpoints" / stray / "model.safetensors").exists()
    shutil.rmtree(stopped / "checkpoints" / stray)
    (stopped / "checkpoints" / "iteration-000007").unlink()
    assert contents(stopped) == contents(long)


def test_a_kill_before_the_old_checkpoints_are_deleted_leaves_none_of_them(long, tmp_path):
    """The newest is in its place, all is done, and nothing will be saved any more."""
    folder = tmp_path / "run"
    shutil.copytree(long, folder)
    kept = sorted((folder / "checkpoints").iterdir())
    shutil.copytree(kept[-1], folder / "checkpoints" / "iteration-000001")
    run(LONG, folder, resume=True)
    assert sorted((folder / "checkpoints").iterdir()) == kept
    assert contents(folder) == contents(long)


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """As somebody who knows of the checksums would."""
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    (folder / "checksums.json").unlink()
    write_checksums(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda progress: {},
        lambda progress: [],
        lambda progress: progress | {"iteration": "3"},
        lambda progress: progress | {"iteration": 2},
        lambda progress: progress | {"recipe": 3},
        lambda progress: progress | {"pending": [1]},
        lambda progress: {key: progress[key] for key in progress if key != "architecture"},
    ],
)
def test_a_damaged_trainer_file_is_named(stopped, change):
    shutil.rmtree(stopped / "checkpoints" / "iteration-000002", ignore_errors=True)
    rewrite(stopped / "checkpoints" / "iteration-000003", "trainer.json", change)
    with pytest.raises(UserError, match=r"trainer\.json"):
        run(LONG, stopped, resume=True)


@pytest.mark.parametrize("state", [[], {}, {"learner": 3}, {"learner": {"optimizer": {}}}])
def test_a_foreign_optimizer_state_is_named(stopped, state):
    folder = stopped / "checkpoints" / "iteration-000003"
    torch.save(state, folder / "trainer.pt")
    (folder / "checksums.json").unlink()
    write_checksums(folder)
    for other in (stopped / "checkpoints").glob("iteration-00000[12]"):
        shutil.rmtree(other)
    with pytest.raises(UserError, match=r"trainer\.pt"):
        run(LONG, stopped, resume=True)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"trainer.pt": "0"}', "{", ""])
def test_checksums_of_nothing_prove_nothing(stopped, long, text):
    (stopped / "checkpoints" / "iteration-000003" / "checksums.json").write_text(text)
    said: list[str] = []
    run(LONG, stopped, resume=True, said=said)
    assert "checksums.json" in said[0]
    assert contents(stopped) == contents(long)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5},
        {"learner": {"optim": {"lr": 2e-3, "schedule": "constant", "warmup_ratio": 0.0}}},
        {"model": {"from_scratch": RECIPE["model"]["from_scratch"] | {"hidden_size": 32}}},
        {"credit": {"name": "grpo"}},
    ],
)
def test_a_checkpoint_of_another_run_is_refused(stopped, tmp_path, changes):
    run(SHORT | changes, tmp_path / "other")
    foreign = tmp_path / "other" / "checkpoints" / "iteration-000002"
    target = stopped / "checkpoints" / "iteration-000005"
    shutil.copytree(foreign, target)
    rewrite(target, "trainer.json", lambda progress: progress | {"iteration": 5})
    with pytest.raises(UserError, match="of another run"):
        run(LONG, stopped, resume=True)


def test_a_model_of_another_shape_in_the_place_of_ours_is_refused(stopped, tmp_path):
    model = {"from_scratch": RECIPE["model"]["from_scratch"] | {"hidden_size": 32}}
    other = run(SHORT | {"model": model}, tmp_path / "other")
    target = stopped / "checkpoints" / "iteration-000003"
    for name in ("model.safetensors", "config.json"):
        shutil.copy(other / name, target / name)
    (target / "checksums.json").unlink()
    write_checksums(target)
    with pytest.raises(UserError, match="holds another model"):
        run(LONG, stopped, resume=True)


def test_all_files_of_a_checkpoint_have_one_mode(short):
    files = [path for path in (short / "checkpoints").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1
