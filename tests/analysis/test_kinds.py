"""Every kind on real runs, through the command line."""

import json
from dataclasses import replace

import pytest
import torch

from vineppo.analysis import ANALYSES, OF_FILES
from vineppo.analysis.gradient_variance import gradient
from vineppo.analysis.measured import AnalysisConfig, draw_groups, measure, states_of
from vineppo.analysis.reference_values import ReferenceValues
from vineppo.analysis.subject import find_checkpoints, open_subject
from vineppo.cli import main
from vineppo.learner.policy import PolicyLearner
from vineppo.learner.policy_loss import policy_loss
from vineppo.methods.samples import to_samples
from vineppo.types import Credit

SMALL = ["num_problems=8", "num_reference=16", "vines=[1, 3]", "group_size=3", "num_actions=2", "num_draws=12",
         "num_minibatches=4", "temperatures=[0.0, 1.0]", "num_pilots=6"]  # fmt: skip


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(["analyze", *map(str, runs.values()), "--kind", "all", "--out", str(out), *SMALL]) == 0
    return out


@pytest.mark.parametrize("kind", [*ANALYSES, *OF_FILES])
def test_every_kind_has_rows_of_both_runs_and_figures(results, kind):
    result = json.loads((results / f"{kind}.json").read_text())
    assert result["kind"] == kind
    assert result["title"]
    assert result["text"]
    assert result["config"]["num_reference"] == 16
    main_table = next(iter(result["tables"].values()))
    assert {row["method"] for row in main_table} == {"ppo", "vineppo"}
    if kind not in OF_FILES:
        assert {row["iteration"] for row in main_table} == {1, 2}
    for name in result["charts"]:
        assert (results / f"{kind}-{name}.svg").read_text().startswith("<svg")


def test_who_is_judged(results):
    rows = json.loads((results / "value_accuracy.json").read_text())["tables"]["accuracy"]
    judged = {method: {row["estimator"] for row in rows if row["method"] == method} for method in ("ppo", "vineppo")}
    assert judged["vineppo"] == {"VinePPO K=1", "VinePPO K=3", "group mean", "constant", "perfect"}
    assert judged["ppo"] == judged["vineppo"] | {"critic"}
    for row in rows:
        if row["measure"] == "mae":
            assert row["low"] <= row["estimate"] <= row["high"]


def test_charts_average_over_runs_and_never_over_checkpoints(results):
    """One run of each method here, with two checkpoints."""
    for kind in ("value_accuracy", "by_position", "num_vines", "signal_to_noise", "gradient_variance", "temperature"):
        charts = json.loads((results / f"{kind}.json").read_text())["charts"]
        marks = [row for chart in charts.values() for row in chart["data"]["values"]]
        assert marks, kind
        assert {row["runs"] for row in marks if "runs" in row} == {1}, kind


def test_the_scatter_has_the_critic(results):
    scatter = json.loads((results / "value_accuracy.json").read_text())["charts"]["scatter"]["data"]["values"]
    assert {row["of"] for row in scatter} >= {"ppo: critic", "ppo: VinePPO K=3", "vineppo: VinePPO K=3"}


def test_a_second_time_gives_the_same_and_samples_no_reference_again(runs, results, tmp_path):
    files = {file: file.read_bytes() for run in runs.values() for file in (run / "analysis" / "reference").iterdir()}
    again = ["analyze", *map(str, runs.values()), "--kind", "value_accuracy", "--out", str(tmp_path), *SMALL]
    assert main(again) == 0
    first, second = (json.loads((folder / "value_accuracy.json").read_text()) for folder in (results, tmp_path))
    assert first["tables"] == second["tables"]
    assert {file: file.read_bytes() for file in files} == files


def test_states_and_predictions_belong_together(runs):
    (checkpoint,) = find_checkpoints([runs["ppo"]], last_only=True)
    config = AnalysisConfig(num_problems=6, num_reference=8, vines=(2,), group_size=2)
    with open_subject(checkpoint) as subject:
        measured = measure(subject, config)
        groups = draw_groups(subject, config)
        assert subject.ppo is not None
        first = [[group[0]] for group in groups]
        credits = subject.ppo.assign(first, seed=0).credits
    expected = [
        credit.token_values[b]
        for (credit,), (rollout,) in zip(credits, first, strict=True)
        for b in rollout.boundaries[:-1]
        if credit.token_values
    ]
    assert measured.predictions["critic"] == pytest.approx(expected)
    assert len(measured.reference) == len(measured.problems) == len(expected)
    firsts = [rollout for (rollout,) in first]
    assert measured.positions == pytest.approx([j / r.num_segments for r in firsts for j in range(r.num_segments)])
    assert measured.problems == [r.problem.id for r in firsts for _ in range(r.num_segments)]


def test_the_gradient_is_the_one_that_training_takes(runs):
    """But for the sign, as a loss is minimised. Adam's first moment after one step is (1 - beta1) x gradient."""
    (checkpoint,) = find_checkpoints([runs["vineppo"]], last_only=True)
    with open_subject(checkpoint) as subject:
        groups = draw_groups(subject, AnalysisConfig(num_problems=4, group_size=2))
        credits = [
            [Credit(r.boundaries, tuple(float(i % 3 - 1) for i in range(len(r.token_ids)))) for r in group]
            for group in groups
        ]
        samples = to_samples(groups, credits)
        ours = gradient(subject, samples)
        small = subject.recipe.learner.model_copy(update={"microbatch_tokens": 64})
        in_parts = replace(
            subject,
            checkpoint=replace(checkpoint, recipe=subject.recipe.model_copy(update={"learner": small})),
        )
        assert gradient(in_parts, samples) == pytest.approx(ours, abs=1e-6)
        optim = subject.recipe.learner.optim.model_copy(update={"max_grad_norm": 1e9})
        config = subject.recipe.learner.model_copy(update={"optim": optim, "kl_coef": 0.0})
        learner = PolicyLearner(config, subject.model, None, sampling=subject.environment.params, total_steps=10)
        learner.step(learner.score(samples), policy_loss)
        moments = learner.optimizer_step.optimizer.state
        first = torch.cat([moments[p]["exp_avg"].flatten() for p in learner.optimizer_step.parameters]).numpy()
        beta = learner.optimizer_step.optimizer.param_groups[0]["betas"][0]
    assert -first / (1 - beta) == pytest.approx(ours, abs=1e-5)


def test_references_are_those_of_their_states(runs):
    """One at a time, in the opposite order, elsewhere."""
    (checkpoint,) = find_checkpoints([runs["vineppo"]], last_only=True)
    config = AnalysisConfig(num_problems=4, num_reference=8, vines=(2,), group_size=2)
    with open_subject(checkpoint) as subject:
        measured = measure(subject, config)
        states = [pair for group in draw_groups(subject, config) for pair in states_of(group[0])]
        alone = ReferenceValues(runs["vineppo"] / "elsewhere", "weights", subject.environment, 8, seed=config.seed)
        values = [alone.values([state], [budget])[0] for state, budget in reversed(states)]
    assert measured.reference == pytest.approx(values[::-1])
    assert measured.reference.std() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "value"], "must be all or one of value_accuracy"),
        (["--kind", "value_accuracy", "num_problem=3"], "did you mean 'num_problems'"),
        (["--kind", "gradient_variance", "num_problems=12", "num_minibatches=5"], "multiple"),
        (["--kind", "gradient_variance", "num_problems=64"], "12 problems"),
        (["--kind", "value_accuracy", "vines=[]"], "vines"),
        (["--kind", "value_accuracy", "vines=[0]"], "vines"),
        (["--kind", "action_ranking", "num_actions=1"], "num_actions"),
        (["--kind", "by_position", "num_problems=0"], "num_problems"),
        (["--kind", "pays", "group_size=2"], "needs siblings"),
        (["--kind", "pays", "pilot_vines=1"], "pilot_vines"),
        (["--kind", "temperature", 'split="train"'], "fixed split"),
    ],
)
def test_mistakes_are_named(runs, capsys, arguments, message):
    assert main(["analyze", str(runs["ppo"]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_folders_that_are_no_run_are_named(tmp_path, runs, capsys):
    assert main(["analyze", str(tmp_path), "--kind", "by_position"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["analyze", str(runs["ppo"].parent / "sft"), "--kind", "by_position"]) == 2
    assert "this analysis is for runs of" in capsys.readouterr().err
    assert main(["analyze", "num_problems=3", "--kind", "by_position"]) == 2
    assert "at least one run" in capsys.readouterr().err
