"""The quickstart with sizes of seconds: everything but how much is learnt, which .ci/run checks at full size."""

from __future__ import annotations

import importlib.util
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vineppo import quickstart as q
from vineppo.types import UserError

TASK = {"name": "arithmetic", "num_steps": [1, 2], "num_test": 30}
SIZES = {
    "task": TASK,
    "engine": {"name": "torch", "max_kv_tokens": 8192},
    "evaluation": {"num_samples": 2, "max_new_tokens": 24},
}
SFT = SIZES | {
    "model": {"from_scratch": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 32}},
    "sft": {"num_problems": 160, "num_epochs": 1, "minibatch_size": 8},
    "learner": {"optim": {"lr": 5e-3}},
}
VINEPPO = SIZES | {
    "sampling": {"prompts_per_iteration": 4, "group_size": 4, "max_new_tokens": 24},
    "credit": {"name": "vineppo", "num_vines": 3},
    "train": {"num_iterations": 2, "num_epochs": 1, "minibatch_size": 8},
    "learner": {"optim": {"lr": 1e-4}},
}


def check_script():
    path = Path(__file__).parent.parent / "scripts" / "check_quickstart.py"
    spec = importlib.util.spec_from_file_location("check_quickstart", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out: Path, seed: int = 0) -> tuple[dict, str]:
    screen = StringIO()
    result = q.quickstart(out, seed=seed, device="cpu", console=Console(file=screen, width=100))
    return result, screen.getvalue()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(q, "SFT", SFT)
    monkeypatch.setattr(q, "VINEPPO", VINEPPO)


def test_it_runs_shows_and_repeats(tmp_path):
    result, screen = run(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == result
    assert (tmp_path / "a" / "report.html").stat().st_size < 5e6
    left = {problem for problem in check_script().find_problems(result) if "gain" not in problem}
    assert {problem.split(" ")[0] for problem in left} <= {"the", "sft", "vineppo"}, left  # only sizes and learning
    for word in ("after SFT", "after VinePPO", "V before", "advantage", "numbers"):
        assert word in screen
    again, _ = run(tmp_path / "a")  # replaces the first
    measured = ("sft", "vineppo", "tokens", "seed")
    assert [again[key] for key in measured] == [result[key] for key in measured]


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds more than an earlier quickstart"):
        run(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"vineppo": {"pass@1": 0.29, "ci95": [0.25, 0.33], "num_problems": 600}}, "gain is under"),
        ({"sft": {"pass@1": 0.1, "ci95": [0.0, 0.46], "num_problems": 600}}, "overlap"),
        ({"sft": {"pass@1": 0.1, "ci95": [0.05, 0.15], "num_problems": 499}}, "499 problems"),
        ({"seconds": {"sft": 1, "rl": 1, "eval": 1, "total": 361}}, "361 s"),
        ({"peak_memory_mb": 5000}, "5000 MB"),
        ({"tokens": {"policy": 1, "vine": 0, "eval": 1}}, "no vine tokens"),
        ({"tokens": {"policy": 1, "eval": 1}}, "tokens has the keys"),
    ],
)
def test_the_check_of_ci_can_fail(change, complaint):
    good = {
        "sft": {"pass@1": 0.1, "ci95": [0.05, 0.15], "num_problems": 600},
        "vineppo": {"pass@1": 0.5, "ci95": [0.45, 0.55], "num_problems": 600},
        "seconds": {"sft": 50, "rl": 100, "eval": 20, "total": 180},
        "tokens": {"policy": 1, "vine": 1, "eval": 1},
        "peak_memory_mb": 1200, "seed": 0, "device": "cpu: x", "commit": None,
    }  # fmt: skip
    found = list(check_script().find_problems({**good, **change}))
    assert found == [] if complaint is None else any(complaint in problem for problem in found), found


def test_other_runs_of_these_names_are_left_alone(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "recipe.toml").write_text('name = "my-sft"\n')
    with pytest.raises(UserError, match="holds more than an earlier quickstart"):
        run(tmp_path)
    assert (tmp_path / "sft" / "recipe.toml").exists()
