"""The quickstart with sizes of seconds: everything but how much is learnt, which .ci/run checks at full size."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vineppo.cli import quickstart as q
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
    path = Path(__file__).parent.parent.parent / "scripts" / "check_quickstart.py"
    spec = importlib.util.spec_from_file_location("check_quickstart", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out: Path, seed: int = 0, **options) -> tuple[dict, str]:
    screen = StringIO()
    result = q.quickstart(out, seed=seed, device="cpu", console=Console(file=screen, width=100), **options)
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


def tree(folder: Path) -> dict[str, object]:
    """Everything below it, links as links."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def put(path: Path, text: str = "years of work") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "quickstart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(q, "SFT", SFT)
        patch.setattr(q, "VINEPPO", VINEPPO)
        run(out)
    return out


ALONE = {
    "a clone": ["vineppo/__init__.py", ".git/HEAD", "README.md"],
    "a package": ["vineppo/__init__.py"],
    "a package beside a run": ["vineppo/__init__.py", "sft/model.bin", "result.json"],
    "a run of that name": ["sft/recipe.toml", "sft/environment.json"],
    "a broken recipe": ["vineppo/recipe.toml"],
    "a file of that name": ["sft"],
    "a summary": ["result.json"],
    "a page": ["report.html"],
    "both": ["result.json", "report.html"],
    "a lock and more": ["vineppo.lock", "report.html"],
    "half a recipe": ["sft/recipe.toml.part"],
}
ADDED = [
    "notes.txt", ".git/config", "sft/notes.txt", "sft/.git/HEAD", "sft/checkpoints/notes.json",
    "vineppo/rollouts/best.gz", "sft/checkpoints/iteration-000020-good/model.safetensors",
    "vineppo/checkpoints/iteration-000002/adapter.safetensors",
    "vineppo/checkpoints/.unfinished-iteration-000003/thesis.tex",
    "vineppo/analysis/kl.json", "sft/checkpoints/x",
    "vineppo/checkpoints/iteration-000002/critic/sub/a.json", "more/sft/recipe.toml", "vineppo/metrics.jsonl.bak",
]  # fmt: skip


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_what_no_quickstart_made_stays_as_it_is(tmp_path, name, resume):
    for path in ALONE[name]:
        put(tmp_path / path, 'name = "my-sft"\n' if path.endswith("recipe.toml") else "years of work")
    before = tree(tmp_path)
    with pytest.raises(UserError):
        run(tmp_path, resume=resume)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_added_to_an_earlier_one_keeps_it_as_it_is(tmp_path, finished, seed):
    """A file, an empty folder, a link, or another's file in the place of ours, anywhere in it."""
    rng, out = random.Random(seed), tmp_path / "quickstart"
    shutil.copytree(finished, out)
    ours = sorted(path for path in out.rglob("*") if path.is_file())
    victim = rng.choice(ours)
    match seed % 4:
        case 0 | 1:
            put(out / rng.choice(ADDED))
        case 2:
            (out / rng.choice(ADDED)).mkdir(parents=True)
        case _:
            victim.rename(tmp_path / "moved")
            victim.symlink_to(tmp_path / "moved")
    before = tree(out)
    with pytest.raises(UserError, match="holds more than an earlier quickstart"):
        run(out)
    assert tree(out) == before


@pytest.mark.parametrize("link", ["sft", "result.json"])
def test_a_link_is_not_followed_to_what_it_names(tmp_path, finished, link):
    out = tmp_path / "quickstart"
    shutil.copytree(finished, out)
    (out / link).rename(tmp_path / "elsewhere")
    (out / link).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(UserError):
        run(out)
    assert tree(tmp_path) == before


def test_one_that_was_stopped_goes_on_and_a_finished_one_stays(tmp_path, finished, monkeypatch):
    whole, out = json.loads((finished / "result.json").read_text()), tmp_path / "quickstart"
    with pytest.raises(UserError, match="no quickstart to resume"):
        run(out, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(q, "make_recipe", stop_at_the_second(q.make_recipe))
        with pytest.raises(KeyboardInterrupt):
            run(out)
    assert not (out / "vineppo").exists()
    for _ in range(2):
        result, screen = run(out, resume=True)
        assert "already done" in screen
        measured = ("sft", "vineppo", "tokens", "seed")
        assert [result[key] for key in measured] == [whole[key] for key in measured]
    assert not list(out.rglob("*.lock"))


def stop_at_the_second(make):
    def wrapper(tree, **options):
        if tree["name"] == "quickstart-vineppo":
            raise KeyboardInterrupt
        return make(tree, **options)

    return wrapper


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
