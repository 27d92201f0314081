"""A run whose learning rate is 0: whatever three iterations of the real loop measure as change is rounding."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from vineppo.methods.run import run_recipe
from vineppo.methods.train import TrainRecipe
from vineppo.runs.recipe import make_recipe
from vineppo.runs.setup import load_policy
from vineppo.tasks import TASKS

RECIPE: dict[str, Any] = {
    "name": "identity",
    "device": "cpu",
    "task": {"name": "arithmetic", "num_steps": [1, 3], "num_test": 12},
    "model": {"from_scratch": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "ffn_size": 32}},
    "engine": {"name": "torch", "dtype": "float32"},
    "sampling": {"prompts_per_iteration": 4, "group_size": 3, "max_new_tokens": 16},
    "credit": {"name": "ppo"},  # a random critic gives advantages where a random policy earns nothing
    "train": {"num_iterations": 3, "num_epochs": 2, "minibatch_size": 5},
    "learner": {"precision": "float32", "microbatch_tokens": 100, "kl_coef": 0.1, "optim": {"lr": 0.0}},
    "evaluation": {"every": 1, "num_samples": 2, "max_new_tokens": 16},
}


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "all": {"sampling": {"top_p": 1.0}},
    "cut": {"sampling": {"top_p": 0.8}, "learner": {"max_importance": 2.0}},
    "renormalised": {"sampling": {"top_p": 0.8}, "learner": {"max_importance": 2.0, "renormalize_nucleus": True}},
}


def run(folder: Path, **sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; the weights at the end must be those at the start, bit for bit."""
    tree = RECIPE | {name: RECIPE[name] | section for name, section in sections.items()}
    recipe = make_recipe(tree, kind=TrainRecipe, source="test")
    last = run_recipe(recipe, folder, echo=lambda _: None)
    _, initial = load_policy(recipe, TASKS["arithmetic"](recipe.task))  # type: ignore[arg-type]
    saved = load_file(last / "model.safetensors")
    assert saved.keys() == dict(initial.named_parameters()).keys()
    assert all(saved[name].equal(parameter) for name, parameter in initial.named_parameters())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["optim/num_steps"] for line in lines] == [6, 6, 6]
    return lines


@pytest.fixture(scope="module")
def lines_of(tmp_path_factory):
    """Each run is made once."""

    @cache
    def lines_of(engine: str, case: str) -> list[dict[str, Any]]:
        return run(tmp_path_factory.mktemp(engine) / case, engine={"name": engine, "dtype": "float32"}, **CASES[case])

    return lines_of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["torch", "hf"])
def test_nothing_moves(lines_of, engine, case):
    lines = lines_of(engine, case)
    for line in lines:
        assert line["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert line["policy/ratio_max"] == pytest.approx(1, abs=1e-5)
        assert line.get("policy/importance_max", 1) == pytest.approx(1, abs=1e-4)
        assert line["policy/clip_frac"] == 0
        assert line["policy/approx_kl"] == pytest.approx(0, abs=1e-6)
        assert line["kl/reference"] == pytest.approx(0, abs=1e-5)
        assert line["eval/kl_reference"] == 0
        assert line["policy/engine_logprob_diff_mean"] < 1e-5
        assert line["policy/engine_logprob_diff_max"] < 1e-3  # in every iteration: it does not grow
        assert (line["policy/kept_mass_mean"] == 1) == (case == "all")
        assert line["optim/grad_norm"] > 0.1  # there was something to learn
        assert line["eval/pass@1"] == lines[0]["eval/pass@1"]
        assert line["eval/length_mean"] == lines[0]["eval/length_mean"]
    assert len({line["rollouts/length_mean"] for line in lines}) == 3  # new rollouts every time


@pytest.mark.parametrize("case", CASES)
def test_both_engines_train_on_the_same_tokens(lines_of, case):
    """A seed means the same in both, so two runs differ by rounding in every number there is."""
    for one, other in zip(lines_of("torch", case), lines_of("hf", case), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.parametrize("name", ["vineppo", "grpo", "rloo"])
def test_nothing_moves_whatever_gives_the_credit(tmp_path, name):
    tree = {key: value for key, value in RECIPE.items() if key != "credit"}
    recipe = make_recipe(tree | {"credit": {"name": name}}, kind=TrainRecipe, source="test")
    run_recipe(recipe, tmp_path / "run", echo=lambda _: None)
    for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        assert line["policy/ratio_max"] == pytest.approx(1, abs=1e-5)
        assert line["eval/kl_reference"] == 0
