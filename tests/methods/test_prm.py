"""`vineppo prm`: what vines have measured becomes a reward model that transformers opens and training uses."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tomli_w
import torch
from coin_walk import TOKENIZER, exact_value, height, make_environment
from tiny import ALIKE, FAST, METHODS, SFT, START, StopAt, run
from tiny_critic import make_policy
from transformers import AutoModelForTokenClassification, AutoTokenizer, LlamaConfig, LlamaForTokenClassification

from vineppo.cli import main
from vineppo.credit.common import CreditContext
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.learner.classifier import ClassifierLearner, LabelledResponse
from vineppo.learner.config import OptimConfig, OptimizerStepConfig
from vineppo.methods.prm import read_run, split_by_problem, state_errors
from vineppo.models import RewardModelConfig
from vineppo.models.loading import load_tokenizer
from vineppo.models.make import save_model
from vineppo.models.reward_model import load_reward_model
from vineppo.rollout_files import save_rollouts
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.runs.shutdown import Stopped
from vineppo.types import UserError

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prm")


@pytest.fixture(scope="module")
def start(root) -> Path:
    return run(SFT, root / "sft").parent.parent


@pytest.fixture(scope="module")
def measured(root, start) -> Path:
    """A run of VinePPO that learns next to nothing and measures a lot."""
    tree = METHODS["vineppo"] | {"name": "measured", "model": {"name": str(start)}}
    tree |= {"credit": {"name": "vineppo", "num_vines": 6}, "learner": {"optim": {"lr": 1e-9}}}
    tree |= {"sampling": tree["sampling"] | {"prompts_per_iteration": 24, "max_resamples": 0}}
    return run(tree, root / "measured").parent.parent


@pytest.fixture(scope="module")
def tree(start, measured) -> Tree:
    recipe = ALIKE | {"name": "prm", "model": {"name": str(start)}, "learner": FAST}
    return recipe | {"prm": {"runs": [str(measured)], "num_epochs": 3, "minibatch_size": 16, "holdout_share": 0.3}}


@pytest.fixture(scope="module")
def trained(root, tree) -> Path:
    return run(tree, root / "prm").parent.parent


def rollouts_of(folder: Path) -> list[Tree]:
    files = sorted((folder / "rollouts").glob("*"))
    return [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]


def metrics_of(folder: Path) -> list[Tree]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_checkpoint(folder: Path) -> Path:
    return sorted((folder / "checkpoints").iterdir())[-1]


# Labels


def test_labels_are_the_measured_values_at_the_boundaries_and_the_reward_at_the_end(measured, start):
    kept = rollouts_of(measured)
    rows = list(read_run(measured, load_tokenizer(str(last_checkpoint(start)))))
    assert len(rows) == len(kept) == 4 * 24 * 4
    for row, rollout in zip(rows, kept, strict=True):
        assert row.labels == tuple(rollout["values"])
        assert row.labels[-1] == rollout["reward"]
        assert row.response_ids == tuple(rollout["token_ids"])
        assert row.states == tuple(sum(rollout["num_tokens"][:j]) for j in range(len(rollout["segments"]) + 1))
        assert set(row.weights) == {6}
        assert all(math.isclose(label * 6, round(label * 6)) for label in row.labels)


def test_no_problem_is_on_both_sides(measured, start):
    rows = list(read_run(measured, load_tokenizer(str(last_checkpoint(start)))))
    learnt, held_out = split_by_problem(rows, 0.25)
    assert len(learnt) + len(held_out) == len(rows)
    problems = [{row.problem for row in side} for side in (learnt, held_out)]
    assert not problems[0] & problems[1]
    assert len(problems[1]) == round(0.25 * len(problems[0] | problems[1]))


# Learning


def make_rows() -> list[LabelledResponse]:
    return [
        LabelledResponse("a", (1, 2), (3, 4, 5), (0, 2, 3), (0.25, 0.5, 1.0), (4, 4, 4)),
        LabelledResponse("b", (1,), (3,), (0, 1), (0.75, 0.0), (8, 8)),
        LabelledResponse("b", (1,), (3, 6, 3, 6, 3), (1, 5), (0.1, 0.9), (2, 1)),
    ]


def make_learner(microbatch_tokens: int = 8192) -> ClassifierLearner:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_labels": 1}
    model: Any = LlamaForTokenClassification(LlamaConfig(vocab_size=9, num_attention_heads=2, **sizes))
    model = model.double().eval()
    optim = OptimConfig(max_grad_norm=1e9)
    config = OptimizerStepConfig(precision="float32", microbatch_tokens=microbatch_tokens, optim=optim)
    return ClassifierLearner(config, model, total_steps=10)


@pytest.mark.parametrize("microbatch_tokens", [8192, 1])
def test_the_loss_is_the_weighted_cross_entropy_at_the_states(microbatch_tokens):
    learner = make_learner(microbatch_tokens)
    total, weights = torch.tensor(0.0, dtype=torch.float64), 0.0
    for row in make_rows():
        for state, label, weight in zip(row.states, row.labels, row.weights, strict=True):
            prefix = torch.tensor([row.prompt_ids + row.response_ids[:state]])
            p = learner.model(prefix).logits[0, -1, 0].sigmoid()  # of the state alone
            total = total - weight * (label * p.log() + (1 - label) * (1 - p).log())
            weights += weight
    expected = torch.autograd.grad(total / weights, list(learner.model.parameters()))
    found: list[torch.Tensor] = []
    parameters = learner.optimizer_step.parameters
    learner.optimizer_step.optimizer.step = lambda: found.extend(p.grad.clone() for p in parameters)  # type: ignore[method-assign]
    assert learner.step(make_rows())["prm/loss"] == pytest.approx((total / weights).item(), abs=1e-12)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-8  # Llama's norms are in fp32
    assert max(one.abs().max() for one in found) > 1e-2


def test_the_model_is_written_and_opens_with_transformers(trained):
    lines, result = metrics_of(trained), json.loads((trained / "result.json").read_text())
    assert result["finished"] is True
    assert result["iteration"] == len(lines) == 3 * -(-lines[-1]["prm/num_responses"] // 16)
    assert result["explained_variance"] == lines[-1]["prm/explained_variance"]
    checkpoint = last_checkpoint(trained)
    model, tokenizer = (of.from_pretrained(checkpoint) for of in (AutoModelForTokenClassification, AutoTokenizer))
    ids = tokenizer("1 a+1\n", return_tensors="pt")["input_ids"]
    ours = load_reward_model(RewardModelConfig(path=str(trained))).values([(tuple(ids[0].tolist()), ())])
    assert ours[0][0] == pytest.approx(model(ids).logits[0, -1, 0].sigmoid().item(), abs=1e-6)


def save_walks(folder: Path) -> None:
    """Rollouts of the coin walk, whose values are known, each measured with 4 vines."""
    environment = make_environment()
    sampling = SamplingConfig(prompts_per_iteration=50, group_size=8, max_new_tokens=12)
    groups = sample_groups(environment, environment.task.sample(50, seed=1), sampling, seed=2)
    credits = VinePPO(VinePPOConfig(num_vines=4), CreditContext(environment)).assign(groups, seed=3).credits
    save_rollouts(folder / "rollouts" / "iteration-000001.jsonl.gz", groups, credits, environment, num_vines=0)


def test_what_is_learnt_from_noisy_labels_is_nearer_to_the_truth_than_they_are(tmp_path):
    """On held-out problems of a world whose values are known exactly."""
    save_walks(tmp_path / "measured")
    save_model(make_policy(), TOKENIZER, tmp_path / "policy")
    recipe = ALIKE | {
        "name": "walk",
        "task": {"name": "coin_walk:CoinWalk"},
        "model": {"name": str(tmp_path / "policy")},
    }
    recipe |= {"learner": {"precision": "float32", "optim": {"lr": 3e-3}}}
    run(
        recipe | {"prm": {"runs": [str(tmp_path / "measured")], "num_epochs": 4, "minibatch_size": 32}},
        tmp_path / "prm",
    )
    model = load_reward_model(RewardModelConfig(path=str(tmp_path / "prm")))
    _, held_out = split_by_problem(list(read_run(tmp_path / "measured", TOKENIZER)), 0.2)
    found = model.read([row.sample for row in held_out])
    errors, noise = [], []
    for row, predicted in zip(held_out, found, strict=True):
        for state, label, prediction in zip(row.states[:-1], row.labels[:-1], predicted[:-1], strict=True):
            exact = exact_value(height(str(TOKENIZER.decode(list(row.response_ids[:state])))), 12 - state)
            errors.append((prediction - exact) ** 2)
            noise.append((label - exact) ** 2)
    assert fmean(errors) < fmean(noise) / 2
    result = json.loads((tmp_path / "prm" / "result.json").read_text())
    assert result["explained_variance"] > 0.4
    assert result["calibration_error"] < 0.1
    assert result["outcome_accuracy"] > 0.9


def test_a_perfect_prediction_explains_all_and_a_constant_nothing():
    labels = [0.0, 0.25, 0.5, 1.0, 0.75]
    perfect = state_errors([(label, label, 1.0) for label in labels])
    assert perfect == {"explained_variance": 1.0, "calibration_error": 0.0}
    constant = state_errors([(0.5, label, 1.0) for label in labels])
    assert constant == {"explained_variance": 0.0, "calibration_error": 0.0}
    gloomy = state_errors([(label / 2, label, weight) for label, weight in zip(labels, (1, 1, 2, 2, 1), strict=True)])
    assert gloomy["explained_variance"] == pytest.approx(0.75)
    assert gloomy["calibration_error"] == pytest.approx((0.125 + 2 * 0.25 + 2 * 0.5 + 0.375) / 7)
    assert state_errors([(0.2, 0.5, 1.0)] * 2)["explained_variance"] == 0.0


# Stop and resume


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "metrics.jsonl", folder / "result.json", *last_checkpoint(folder).iterdir()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_stopped_twice_and_resumed_it_is_the_run_that_was_not(tree, trained, tmp_path):
    for resume, step in ((False, 2), (True, 9)):
        with pytest.raises(Stopped):
            run(tree, tmp_path / "prm", resume=resume, sinks=[StopAt(step)])
        assert len(metrics_of(tmp_path / "prm")) == step
    run(tree, tmp_path / "prm", resume=True)
    assert contents(tmp_path / "prm") == contents(trained)
    run(tree, tmp_path / "prm", resume=True)
    assert contents(tmp_path / "prm") == contents(trained)


def test_it_does_not_go_on_from_other_labels(tree, measured, tmp_path):
    shutil.copytree(measured, tmp_path / "measured")
    other = tree | {"prm": tree["prm"] | {"runs": [str(tmp_path / "measured")]}}
    with pytest.raises(Stopped):
        run(other, tmp_path / "prm", sinks=[StopAt(2)])
    next(iter((tmp_path / "measured" / "rollouts").iterdir())).unlink()
    with pytest.raises(UserError, match=r"the rollouts of prm\.runs have changed since this run began"):
        run(other, tmp_path / "prm", resume=True)


# What cannot work


def rewrite(folder: Path, change: Any) -> None:
    for file in (folder / "rollouts").iterdir():
        lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        file.write_bytes(gzip.compress("\n".join(json.dumps(change(line)) for line in lines).encode()))


MISTAKES: dict[str, tuple[Any, str]] = {
    "no run": (lambda f: shutil.rmtree(f), "has no files of rollouts"),
    "nothing measured": (lambda f: rewrite(f, lambda r: r | {"standard_errors": None}), "has no measured values"),
    "an earlier version's": (
        lambda f: rewrite(f, lambda r: {k: v for k, v in r.items() if k != "token_ids"}), "numbers of vines are missing"
    ),
    "other tokens": (
        lambda f: rewrite(f, lambda r: r | {"token_ids": r["token_ids"][::-1]}), "not the tokens of the recipe's model"
    ),
    "unknown tokens": (
        lambda f: rewrite(f, lambda r: r | {"token_ids": [10**6] * len(r["token_ids"])}), "choose a model.name with"
    ),
    "rewards of two": (
        lambda f: rewrite(f, lambda r: r | {"values": [2.0] * len(r["values"])}), "a value of 2 is no probability"
    ),
    "one problem": (lambda f: rewrite(f, lambda r: r | {"problem": "p"}), "1 problems that fit the model leave none"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_learnt_from_is_one_line(tree, measured, tmp_path, name):
    harm, message = MISTAKES[name]
    shutil.copytree(measured, tmp_path / "measured")
    harm(tmp_path / "measured")
    with pytest.raises(UserError) as caught:
        run(tree | {"prm": tree["prm"] | {"runs": [str(tmp_path / "measured")]}}, tmp_path / "prm")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def write_recipe(path: Path, tree: Tree) -> str:
    path.write_text(tomli_w.dumps(tree))
    return str(path)


def test_the_command_trains_it_and_others_refuse_it(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "prm.toml", tree | {"prm": tree["prm"] | {"num_epochs": 1}})
    assert main(["prm", recipe, "--out", "run"]) == 0
    assert "explained variance" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    for command, said in (
        (["train", recipe], "is a recipe for `vineppo prm`"),
        (["eval", recipe], "writes no responses to evaluate"),
        (["compare", recipe], "has no accuracy to compare"),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err


# Uses


@pytest.fixture(scope="module")
def uses(start, trained) -> dict[str, Tree]:
    model = {"path": str(trained)}
    judged = METHODS["grpo"] | {"grading": {"reward_model": model | {"weight": 0.25}}}
    potential = METHODS["grpo"] | {"credit": {"name": "potential", "reward_model": model}}
    trees = {"potential": potential, "judged": judged}
    return {name: tree | {"name": name, "model": {"name": str(start)}} for name, tree in trees.items()}


@pytest.mark.parametrize("name", ["potential", "judged"])
def test_training_with_it_stops_and_resumes_to_the_same_bytes(uses, name, tmp_path):
    run(uses[name], tmp_path / "whole")
    with pytest.raises(Stopped):
        run(uses[name], tmp_path / "stopped", sinks=[StopAt(2)])
    run(uses[name], tmp_path / "stopped", resume=True)
    one, other = (contents(tmp_path / folder) for folder in ("whole", "stopped"))
    assert one.keys() == other.keys()
    assert [file for file in one if one[file] != other[file]] == []


def test_a_judge_has_its_share_of_training_rewards_and_none_of_evaluations(uses, trained, tmp_path):
    kept = rollouts_of(run(uses["judged"], tmp_path / "run").parent.parent)
    model = load_reward_model(RewardModelConfig(path=str(trained)))
    whole = [rollout for rollout in kept if rollout["finish_reason"] == "eos"]
    prompts = [tuple(model.tokenizer.encode(rollout["prompt"])) for rollout in whole]
    values = model.values([(p, tuple(r["token_ids"])) for p, r in zip(prompts, whole, strict=True)])
    for rollout, value in zip(whole, values, strict=True):
        rule = float(rollout["verdict"] == "correct")
        assert rollout["reward"] == pytest.approx(0.75 * rule + 0.25 * value[-1], abs=1e-5)
    assert all(rollout["reward"] == 0 for rollout in kept if rollout["finish_reason"] == "length")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    samples = result["num_problems"] * result["num_samples"]
    assert result["pass@1"] * samples == pytest.approx(round(result["pass@1"] * samples))


def test_its_recipe_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"prm\.runs.*has too few valid items|runs"):
        run(ALIKE | {"name": "prm", "model": START, "learner": FAST, "prm": {"runs": []}}, tmp_path / "run")
