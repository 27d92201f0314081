"""`vineppo compare` for real: processes, a start that all share, what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from survive import RECIPE

from vineppo.cli import main
from vineppo.compare import compare
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
    assert f'name = "{out / "sft"}"' in (out / "grpo-seed1" / "recipe.toml").read_text()
    assert "| rloo |" in (out / "comparison.md").read_text()
    assert "pass@1" in (out / "rloo-seed0.log").read_text()

    lines = {path: path.read_bytes() for path in out.glob("*/timings.jsonl")}
    capsys.readouterr()
    assert main(command) == 0
    assert lines == {path: path.read_bytes() for path in out.glob("*/timings.jsonl")}
    assert "1/" not in capsys.readouterr().out.split("|")[0]

    told = compare([out / "grpo-seed0", out / "rloo-seed0"], seeds=[0], out=tmp_path / "again")
    assert [run["folder"] for run in told["runs"]] == ["grpo-seed0", "rloo-seed0"]


def test_a_failed_run_is_reported_after_the_others_are_done(recipes, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text(tomli_w.dumps(GRPO | {"name": "broken", "sampling": GRPO["sampling"] | {"max_prompt_tokens": 1}}))
    said: list[str] = []
    with pytest.raises(UserError, match=r"1 runs failed: .*broken-seed3\.log"):
        compare([broken, *recipes], seeds=[3], out=tmp_path / "out", say=said.append)
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["failed"] == ["broken-seed3"]
    assert set(comparison["methods"]) == {"grpo", "rloo"}
    assert "longer than 1 tokens" in (tmp_path / "out" / "broken-seed3.log").read_text()


def test_mistakes_are_found_before_anything_runs(recipes, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no recipe here has a section"):
        compare(recipes, ["credits.name=grpo"], seeds=[0], out=out)
    with pytest.raises(UserError, match="same name"):
        compare([recipes[1], recipes[1]], seeds=[0], out=out)
    with pytest.raises(UserError, match="more than one SFT recipe"):
        compare([recipes[0], recipes[0]], seeds=[0], out=out)
    with pytest.raises(UserError, match="no such recipe"):
        compare([tmp_path / "none.toml"], seeds=[0], out=out)
    assert main(["compare", str(recipes[1]), "--jobs", "0", "--out", str(out)]) == 2
    with pytest.raises(SystemExit):
        main(["compare", str(recipes[1]), "--seeds", "a"])
    assert not out.exists()
