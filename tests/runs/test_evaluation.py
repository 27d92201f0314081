"""Mistakes of the evaluation are found before training starts, and one that fails later loses no training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import LONG, RESTEM, SFT, SHORT, contents, run
from tiny import RECIPE

from vineppo.evaluate import EvaluationConfig
from vineppo.runs.session import split_of
from vineppo.runs.setup import Setup
from vineppo.types import UserError


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
