"""A run goes on with a recipe that makes it longer, and with the weights it began with, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import LONG, RESTEM, SFT, SHORT, contents, run

from vineppo.config import diff
from vineppo.methods import kind_of, load_recipe
from vineppo.runs.recipe import make_recipe
from vineppo.types import UserError


@pytest.mark.parametrize("tree", [SHORT, SFT, RESTEM], ids=["train", "sft", "restem"])
def test_a_run_that_is_made_longer_is_the_long_run(tmp_path, tree):
    section = next(name for name in ("train", "sft", "restem") if name in tree)
    key = "num_epochs" if section == "sft" else "num_iterations"
    longer = tree | {section: tree[section] | {key: 4}}
    run(longer, tmp_path / "at once")
    run(tree, tmp_path / "longer")
    said: list[str] = []
    run(longer, tmp_path / "longer", resume=True, said=said)
    assert f"{section}.{key} was 2 and is 4" in "".join(said)
    assert contents(tmp_path / "longer") == contents(tmp_path / "at once")


def test_a_finished_run_says_so_and_stays_as_it_is(short):
    before, said = contents(short), []
    run(SHORT, short, resume=True, said=said)
    run(SHORT | {"checkpoint": {"keep_last": 5}}, short, resume=True, said=said)
    assert ["already done" in text for text in said] == [True, True]
    assert contents(short) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": SHORT["train"] | {"num_iterations": 1}}, "only gets longer"),
        ({"train": SHORT["train"] | {"num_iterations": 4}, "seed": 1}, "seed: 0 -> 1"),
        ({"learner": {"optim": {"lr": 2e-3, "schedule": "constant", "warmup_ratio": 0.0}}}, "learner.optim.lr"),
        ({"grading": {"timeout_s": 3.0}}, "grading.timeout_s"),
    ],
)
def test_what_would_make_it_another_run_is_refused(short, changes, reason):
    before = contents(short)
    with pytest.raises(UserError, match=reason):
        run(SHORT | changes, short, resume=True)
    assert contents(short) == before


@pytest.mark.parametrize("optim", [{"schedule": "linear", "warmup_ratio": 0.0}, {"schedule": "constant"}])
def test_a_schedule_that_knows_the_end_cannot_be_made_longer(tmp_path, optim):
    tree = SFT | {"learner": {"optim": optim}, "sft": SFT["sft"] | {"num_epochs": 1}}
    run(tree, tmp_path / "run")
    with pytest.raises(UserError, match="depends on how long the run is"):
        run(tree | {"sft": SFT["sft"]}, tmp_path / "run", resume=True)


def test_evaluation_and_checkpoints_may_change_on_the_way(stopped):
    changed = LONG | {"evaluation": LONG["evaluation"] | {"num_samples": 3}, "checkpoint": {"keep_last": 1}}
    run(changed, stopped, resume=True)
    assert json.loads((stopped / "result.json").read_text())["num_samples"] == 3
    assert len(list((stopped / "checkpoints").iterdir())) == 1
    recipe = make_recipe(changed, kind=kind_of(changed), source="test")
    assert diff(load_recipe(stopped / "recipe.toml"), recipe) == {}


def test_a_run_goes_on_from_the_weights_it_began_with_or_not_at_all(tmp_path):
    sft = tmp_path / "sft"
    run(SFT, sft)
    tree = SHORT | {"model": {"name": str(sft)}}
    run(tree, tmp_path / "rl")
    recipe = load_recipe(tmp_path / "rl" / "recipe.toml")
    assert recipe.model.name == str(sft / "checkpoints" / "iteration-000004")
    assert recipe.model.checksum is not None
    run(SFT | {"sft": SFT["sft"] | {"num_epochs": 3}}, sft, resume=True)  # the same folder, another policy
    longer = LONG | {"model": tree["model"]}
    run(longer, tmp_path / "rl", resume=True)
    assert load_recipe(tmp_path / "rl" / "recipe.toml").model == recipe.model
    shutil.copy(sft / "checkpoints" / "iteration-000006" / "model.safetensors", Path(str(recipe.model.name)))
    rest = longer | {"train": LONG["train"] | {"num_iterations": 5}}
    with pytest.raises(UserError, match="not the weights that model"):
        run(rest, tmp_path / "rl", resume=True)


def test_an_unfinished_run_is_no_model_to_start_from(stopped, tmp_path):
    with pytest.raises(UserError, match="this run is not finished"):
        run(SHORT | {"model": {"name": str(stopped)}}, tmp_path / "rl")
    assert not (tmp_path / "rl").exists()
