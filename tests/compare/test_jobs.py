"""`vineppo compare` for real: processes, a start that all share, what is done is not done again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from run_folder import write_run
from tiny import RECIPE

from vineppo.cli import main
from vineppo.compare.jobs import compare, plan
from vineppo.methods import load_recipe
from vineppo.types import UserError

SMALL = {key: RECIPE[key] for key in ("task", "engine", "sampling", "evaluation")}
SFT = {
    "name": "sft", "seed": 5, "task": RECIPE["task"], "engine": RECIPE["engine"], "model": RECIPE["model"],
    "learner": RECIPE["learner"], "evaluation": RECIPE["evaluation"],
    "sft": {"num_problems": 40, "num_epochs": 1, "minibatch_size": 8},
}  # fmt: skip
GRPO = SMALL | {
    "name": "grpo", "model": {"name": "elsewhere"}, "learner": {"optim": {"lr": 1e-3}}, "credit": {"name": "grpo"},
    "train": {"num_iterations": 2, "num_epochs": 1, "minibatch_size": 4},
}  # fmt: skip
RLOO = GRPO | {"name": "rloo", "credit": {"name": "rloo"}}


@pytest.fixture
def recipes(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{tree['name']}.toml" for tree in (SFT, GRPO, RLOO)]
    for path, tree in zip(paths, (SFT, GRPO, RLOO), strict=True):
        path.write_text(tomli_w.dumps(tree))
    return paths


def test_runs_what_is_missing_and_nothing_else(recipes, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", *map(str, recipes), "--seeds", "0,1", "--jobs", "2", "--out", str(out), "evaluation.every=1"]
    assert main(command) == 0
    comparison = json.loads((out / "comparison.json").read_text())
    assert {name: method["seeds"] for name, method in comparison["methods"].items()} == {"grpo": [0, 1], "rloo": [0, 1]}
    assert comparison["initial_accuracy"] == json.loads((out / "sft" / "result.json").read_text())["pass@1"]
    assert len(comparison["methods"]["grpo"]["curve"]) == 3
    assert f'name = "{out / "sft" / "checkpoints"}/iteration-' in (out / "grpo-seed1" / "recipe.toml").read_text()
    assert "| rloo |" in (out / "comparison.md").read_text()
    assert "pass@1" in (out / "rloo-seed0.log").read_text()

    lines = {path: path.read_bytes() for path in out.glob("*/timings.jsonl")}
    capsys.readouterr()
    assert main(command) == 0
    assert lines == {path: path.read_bytes() for path in out.glob("*/timings.jsonl")}
    assert "1/" not in capsys.readouterr().out.split("|")[0]

    found = compare([out / "grpo-seed0", out / "rloo-seed0"], seeds=[0], out=tmp_path / "again")
    assert [run["folder"] for run in found["runs"]] == ["grpo-seed0", "rloo-seed0"]

    one_more = [out / "grpo-seed0", *recipes[:2]]  # a run, and its recipe with another seed and the same start
    found = compare(one_more, ["evaluation.every=1"], seeds=[1], out=out)
    assert found["methods"]["grpo"]["seeds"] == [0, 1]


def test_a_failed_run_is_reported_after_the_others_are_done(recipes, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text(tomli_w.dumps(GRPO | {"name": "broken", "sampling": GRPO["sampling"] | {"max_prompt_tokens": 1}}))
    said: list[str] = []
    with pytest.raises(UserError, match=r"1 runs failed: .*broken-seed3\.log"):
        compare([broken, *recipes], seeds=[3], out=tmp_path / "out", echo=said.append)
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["failed"] == ["broken-seed3"]
    assert set(comparison["methods"]) == {"grpo", "rloo"}
    assert "longer than 1 tokens" in (tmp_path / "out" / "broken-seed3.log").read_text()


def test_mistakes_are_found_before_anything_runs(recipes, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"no recipe here has that key; did you mean 'credit\.name'"):
        compare(recipes, ["credits.name=grpo"], seeds=[0], out=out)
    with pytest.raises(UserError, match="same name"):
        compare([recipes[1], recipes[1]], seeds=[0], out=out)
    with pytest.raises(UserError, match="more than one SFT recipe"):
        compare([recipes[0], recipes[0]], seeds=[0], out=out)
    with pytest.raises(UserError, match="nothing to compare"):
        compare([recipes[0]], seeds=[0], out=out)
    with pytest.raises(UserError, match="same name"):
        compare(recipes, seeds=[0, 0], out=out)
    half, whole = write_run(tmp_path, "other", 0, [0.3]), write_run(tmp_path, "grpo", 0, [0.3])
    (half / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        compare([*recipes, half], seeds=[0], out=out)
    with pytest.raises(UserError, match="both are grpo with seed 0"):
        compare([*recipes, whole], seeds=[0], out=out)
    with pytest.raises(UserError, match="both are called grpo, but"):
        compare([*recipes, whole], seeds=[1], out=out)
    with pytest.raises(UserError, match="no such recipe"):
        compare([tmp_path / "none.toml"], seeds=[0], out=out)
    assert main(["compare", str(recipes[1]), "--jobs", "0", "--out", str(out)]) == 2
    with pytest.raises(SystemExit):
        main(["compare", str(recipes[1]), "--seeds", "a"])
    assert not out.exists()


def planned(recipes, overrides) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    sft, jobs = plan(recipes, overrides, seeds=[0], out=Path("out"), echo=said.append)
    return {job.recipe.name: job.recipe for job in (*sft, *jobs)}, said


def test_an_override_is_for_the_recipes_that_have_the_key(recipes):
    found, said = planned(recipes, ["credit.divide_by_std=false", "evaluation.num_problems=3", "sft.num_problems=7"])
    assert found["grpo"].credit.divide_by_std is False
    assert not hasattr(found["rloo"].credit, "divide_by_std")
    assert {recipe.evaluation.num_problems for recipe in found.values()} == {3}
    assert found["sft"].sft.num_problems == 7
    assert said == []
    found, _ = planned(recipes, ["credit.name=vineppo", "credit.num_vines=3"])
    assert found["grpo"].credit.num_vines == found["rloo"].credit.num_vines == 3


def rates(found: dict[str, Any]) -> dict[str, float]:
    return {name: recipe.learner.optim.lr for name, recipe in found.items()}


def test_the_methods_rate_is_not_their_start_s(recipes):
    start = load_recipe(recipes[0]).learner.optim.lr
    found, said = planned(recipes, ["learner.optim.lr=0.5"])
    assert rates(found) == {"sft": start, "grpo": 0.5, "rloo": 0.5}
    assert said == ["learner.optim.lr=0.5: not for sft, which all start from (for it: sft:learner.optim.lr=0.5)"]
    found, said = planned(recipes, ["sft:learner.optim.lr=0.25", "rloo:learner.optim.lr=0.125", "sft:seed=8"])
    assert {name: recipe.learner.optim.lr for name, recipe in found.items()} == {
        "sft": 0.25,
        "grpo": 1e-3,
        "rloo": 0.125,
    }
    assert found["sft"].seed == 8
    assert said == []


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("learner.optim.rate=1", "did you mean 'learner.optim"),
        ("credit.num_vines=3", "no recipe here has that key"),
        ("ppo:learner.optim.lr=1", "no recipe here is called 'ppo', only sft, grpo, rloo"),
        ("rloo:credit.divide_by_std=true", "no recipe here has that key"),
        ("seed=3", "--seeds"),
        ("learner.optim.lr", "not of the form"),
        ("sft:=3", "not of the form"),
        ("=3", "not of the form"),
    ],
)
def test_an_override_for_nobody_is_refused(recipes, override, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        planned(recipes, [override])
