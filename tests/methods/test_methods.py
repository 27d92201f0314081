"""Every method from its recipe to its last checkpoint, stopped at any moment and resumed to the same bytes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import METHODS, SFT, StopAt, run
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from vineppo.credit.ppo import PPO
from vineppo.engine.llama.engine import TorchEngine
from vineppo.learner.policy import PolicyLearner
from vineppo.runs.shutdown import Stopped
from vineppo.types import UserError


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A model that is right in about a quarter of its answers."""
    folder = tmp_path_factory.mktemp("start") / "sft"
    run(SFT, folder)
    assert 0.1 < read_result(folder)["pass@1"] < 0.7
    return folder


def stop_in(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, call: int) -> None:
    """Asks for a stop at the beginning of the `call`-th call of a method, once."""
    original, num_calls = getattr(owner, method), 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, wrapper)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for what the clock decides."""
    last = sorted((folder / "checkpoints").glob("iteration-*"))[-1]
    files = [folder / "metrics.jsonl", folder / "result.json", *folder.glob("rollouts/*"), *last.rglob("*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


def expect_same(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


class Wholes:
    """Runs that nothing stopped, each made once."""

    def __init__(self, root: Path, start: Path):
        self.root, self.start = root, start

    def tree(self, name: str) -> dict[str, Any]:
        return METHODS[name] | {"name": name, "model": {"name": str(self.start)}}

    def folder(self, name: str) -> Path:
        if not (self.root / name).exists():
            run(self.tree(name), self.root / name)
        return self.root / name


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, start) -> Wholes:
    return Wholes(tmp_path_factory.mktemp("whole"), start)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_to_its_end(wholes, name):
    folder = wholes.folder(name)
    lines, result = read_lines(folder), read_result(folder)
    assert [line["iteration"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) == 4 or name == "dpo"
    assert result["finished"] is True
    assert (result["recipe"], result["iteration"]) == (name, len(lines))
    assert lines[-1]["eval/pass@1"] == result["pass@1"]
    assert all("metrics/num_not_finite" not in line for line in lines)
    assert sum(line.get("optim/num_steps", 0) for line in lines) > 4
    (checkpoint,) = (folder / "checkpoints").glob("iteration-*")
    assert checkpoint.name == f"iteration-{len(lines):06d}"
    model, tokenizer = (of.from_pretrained(checkpoint) for of in (AutoModelForCausalLM, AutoTokenizer))
    before = AutoModelForCausalLM.from_pretrained(sorted((wholes.start / "checkpoints").iterdir())[-1])
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert any(moved) == (lines[-1].get("restem/chosen_step") != 0)
    ids = tokenizer("1 a+1\n", return_tensors="pt")["input_ids"]
    assert model(ids).logits.isfinite().all()


def test_what_is_particular_to_each_method_is_there(wholes):
    ppo = read_lines(wholes.folder("ppo"))
    assert [line.get("optim/num_steps", 0) > 0 for line in ppo] == [False, True, True, True]
    assert all(line["critic/num_steps"] > 0 for line in ppo)
    (checkpoint,) = (wholes.folder("ppo") / "checkpoints").glob("iteration-*")
    AutoModelForTokenClassification.from_pretrained(checkpoint / "critic")
    assert all(line["tokens/vine"] > 0 for line in read_lines(wholes.folder("vineppo")))
    for name in ("grpo", "rloo"):
        assert all("tokens/vine" not in line for line in read_lines(wholes.folder(name)))
    restem = read_lines(wholes.folder("restem"))
    assert any(line["restem/chosen_step"] > 0 for line in restem)
    accuracy = [line["restem/validation_accuracy"] for line in restem]
    assert min(accuracy) >= accuracy[0] or any(line["restem/chosen_step"] for line in restem)
    dpo = read_lines(wholes.folder("dpo"))
    assert dpo[0]["tokens/policy"] > 0
    assert all("tokens/policy" not in line for line in dpo[1:])
    assert len(dpo) == 3 * -(-dpo[-1]["dpo/num_pairs"] // 3)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_stopped_twice_is_the_run_that_was_not(wholes, name, tmp_path):
    stopped = tmp_path / name
    for resume, iteration in ((False, 1), (True, 3)):
        with pytest.raises(Stopped):
            run(wholes.tree(name), stopped, resume=resume, sinks=[StopAt(iteration)])
        (checkpoint,) = (stopped / "checkpoints").glob("iteration-*")
        assert checkpoint.name == f"iteration-{iteration:06d}"
        assert len(read_lines(stopped)) == iteration
        assert not (stopped / "result.json").exists() or "finished" not in read_result(stopped)
    run(wholes.tree(name), stopped, resume=True)
    expect_same(stopped, wholes.folder(name))


@pytest.mark.parametrize("name", METHODS)
def test_resuming_a_finished_run_changes_nothing(wholes, name):
    folder = wholes.folder(name)
    before = contents(folder)
    run(wholes.tree(name), folder, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "owner", "method", "call", "lines"),
    [
        ("vineppo", TorchEngine, "generate", 8, 2),  # vines, of any iteration
        ("ppo", PolicyLearner, "score", 1, 0),  # credit has been assigned, nothing has been learnt from it
        ("ppo", PPO, "update", 1, 1),  # within an update: the iteration is finished first
        ("restem", PolicyLearner, "step", 2, 0),  # in the first refit: nothing to keep yet
        ("restem", PolicyLearner, "step", 11, None),  # in a later one
        ("dpo", TorchEngine, "generate", 1, 0),  # while pairs are sampled: nothing to keep yet
        ("dpo", PolicyLearner, "step", 2, 2),
    ],
)
def test_a_stop_inside_of_an_iteration_loses_that_iteration_at_most(
    wholes, name, owner, method, call, lines, tmp_path, monkeypatch
):
    stopped = tmp_path / name
    with monkeypatch.context() as patch:
        stop_in(patch, owner, method, call=call)
        with pytest.raises(Stopped):
            run(wholes.tree(name), stopped)
    num_lines = len(read_lines(stopped)) if (stopped / "metrics.jsonl").exists() else 0
    assert num_lines == lines or (lines is None and num_lines > 0)
    checkpoints = [folder.name for folder in (stopped / "checkpoints").glob("iteration-*")]
    assert checkpoints == [f"iteration-{num_lines:06d}"] or (checkpoints == [] and num_lines == 0)
    run(wholes.tree(name), stopped, resume=True)
    expect_same(stopped, wholes.folder(name))


def test_restem_that_ended_for_lack_of_gain_has_ended(wholes, tmp_path):
    """With a rate of 0 no candidate is better than the initial policy, so the second iteration gains nothing."""
    tree = wholes.tree("restem")
    tree |= {"restem": tree["restem"] | {"stop_without_gain": True}, "learner": {"optim": {"lr": 0.0}}}
    last = run(tree, tmp_path / "run")
    assert last.name == "iteration-000002"
    before = contents(tmp_path / "run")
    assert run(tree, tmp_path / "run", resume=True) == last
    assert contents(tmp_path / "run") == before
    assert read_result(tmp_path / "run")["finished"] is True


def test_without_any_right_response_there_is_nothing_to_prefer(wholes, tmp_path):
    tree = wholes.tree("dpo") | {"model": SFT["model"]}
    with pytest.raises(UserError, match="no problem has both a right and a wrong response"):
        run(tree, tmp_path / "run")


def test_without_any_right_response_restem_keeps_the_initial_policy(wholes, tmp_path):
    tree = wholes.tree("restem") | {"model": SFT["model"]}
    tree["restem"] = tree["restem"] | {"num_iterations": 1}
    run(tree, tmp_path / "run")
    (line,) = read_lines(tmp_path / "run")
    assert (line["restem/num_examples"], line["restem/chosen_step"]) == (0, 0)
