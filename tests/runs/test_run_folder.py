"""A run's folder under every kind of mishap: what is lost is named, what can be mended is, and nothing is silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import RECIPE

from vineppo.config import diff
from vineppo.evaluate import EvaluationConfig
from vineppo.methods import kind_of, load_recipe
from vineppo.methods.run import run_recipe
from vineppo.runs.checkpoint import write_checksums
from vineppo.runs.lock import LOCK, lock_folder
from vineppo.runs.recipe import make_recipe
from vineppo.runs.session import split_of
from vineppo.runs.setup import Setup
from vineppo.types import UserError

LOOP = RECIPE | {
    "checkpoint": {"keep_last": 3},
    "learner": {"optim": {"lr": 1e-3, "schedule": "constant", "warmup_ratio": 0.0}},
    "evaluation": RECIPE["evaluation"] | {"every": 1},
}
SHORT = LOOP | {"train": LOOP["train"] | {"num_iterations": 2}}
LONG = LOOP | {"train": LOOP["train"] | {"num_iterations": 4}}
STEPPER = LOOP["learner"]
OFFLINE = {key: value for key, value in LOOP.items() if key not in ("train", "credit")}
SFT = {key: OFFLINE[key] for key in OFFLINE if key != "sampling"} | {
    "sft": {"num_problems": 16, "num_epochs": 2, "minibatch_size": 8}
}
RESTEM = OFFLINE | {
    "restem": {"num_iterations": 2, "num_epochs": 1, "validation": LOOP["evaluation"] | {"split": "test"}},
}


def run(tree: Mapping[str, Any], folder: Path, *, resume: bool = False, said: list[str] | None = None) -> Path:
    recipe = make_recipe(tree, kind=kind_of(tree), source="test")
    echo = (lambda text: None) if said is None else said.append
    return run_recipe(recipe, folder, resume=resume, echo=echo)


def contents(folder: Path) -> dict[str, bytes]:
    """All that recipe and seed decide."""
    ours = {"timings.jsonl", "environment.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ours
    }


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "run"
    run(SHORT, folder)
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "run"
    run(LONG, folder)
    return folder


@pytest.fixture
def stopped(long, tmp_path) -> Path:
    """As a kill in iteration 4 leaves it."""
    folder = tmp_path / "run"
    shutil.copytree(long, folder)
    shutil.rmtree(folder / "checkpoints" / "iteration-000004")  # 2 and 3 are left
    (folder / "result.json").unlink()
    return folder


# Longer


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


# One process


def test_a_second_process_is_refused_and_told_who_holds_it(stopped):
    before = contents(stopped)
    holder = f"in use by another process .pid {os.getpid()}"
    with lock_folder(stopped, pytest.fail), pytest.raises(UserError, match=holder):
        run(LONG, stopped, resume=True)
    assert contents(stopped) == before


def test_a_killed_holder_holds_nothing(tmp_path):
    code = "import sys; from pathlib import Path; from vineppo.runs.lock import lock_folder\n"
    code += "with lock_folder(Path(sys.argv[1]), print): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=str(holder.pid)), lock_folder(tmp_path, pytest.fail):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with lock_folder(tmp_path, pytest.fail):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


# Not ours


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


# Mistakes of the evaluation


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evaluation": {"stop": [""]}}, "must not be empty"),
        ({"evaluation": {"stop": ["<eos>"]}}, "special tokens"),
        ({"evaluation": {"max_new_tokens": 400}, "engine": {"name": "torch", "max_kv_tokens": 64}},
         "evaluation: .*max_kv_tokens"),
        ({"evaluation": {"split": "tset"}}, "tset"),
        ({"task": RECIPE["task"] | {"num_steps": [12, 12]},
          "model": {"from_scratch": RECIPE["model"]["from_scratch"] | {"context_size": 8}}}, "prompts are longer than"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tree", [SHORT, SFT, RESTEM], ids=["train", "sft", "restem"])
def test_a_mistake_of_the_evaluation_is_found_before_the_first_step(tmp_path, tree, changes, reason, monkeypatch):
    monkeypatch.setattr("vineppo.learner.policy.PolicyLearner.step", None)
    with pytest.raises(UserError, match=reason):
        run(tree | changes, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_restem_asks_its_validation_too(tmp_path):
    for changes, reason in (({"split": "foo"}, "foo"), ({"stop": ["<eos>"]}, "restem.validation: .*special")):
        validation = RESTEM["restem"]["validation"] | changes
        with pytest.raises(UserError, match=reason):
            run(RESTEM | {"restem": RESTEM["restem"] | {"validation": validation}}, tmp_path / changes.popitem()[0])


def test_an_empty_split_is_named_with_its_section():
    empty: Any = SimpleNamespace(split=lambda name: [])
    with pytest.raises(UserError, match=r"restem.validation.split = 'validation' is empty; raise task.num_validation"):
        split_of(empty, EvaluationConfig(split="validation"), "restem.validation")


@pytest.mark.parametrize("tree", [LONG, SFT, RESTEM], ids=["train", "sft", "restem"])
def test_an_evaluation_that_fails_loses_no_training(tmp_path, tree, monkeypatch):
    """At the end of a run with no other checkpoint: the resumed run only evaluates, and ends as the undisturbed one."""
    tree = tree | {"checkpoint": {"every": 0}, "evaluation": tree["evaluation"] | {"every": 0}}
    run(tree, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Setup, "evaluate", fail)
        with pytest.raises(OSError, match="no more"):
            run(tree, tmp_path / "run")
    monkeypatch.setattr("vineppo.learner.policy.PolicyLearner.step", None)  # nothing is learnt again
    run(tree, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def fail(*_: object) -> None:
    raise OSError("no more")


# Damage


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


# Checkpoints


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
        lambda told: {},
        lambda told: [],
        lambda told: told | {"iteration": "3"},
        lambda told: told | {"iteration": 2},
        lambda told: told | {"recipe": 3},
        lambda told: told | {"pending": [1]},
        lambda told: {key: told[key] for key in told if key != "architecture"},
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
    rewrite(target, "trainer.json", lambda told: told | {"iteration": 5})
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


# Where training started


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
