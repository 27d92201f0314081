"""What is said of a run."""

from __future__ import annotations

import json

import pytest
from run_folder import two_groups

from vineppo.report.run import CURVES, PREFIXES, before_and_after, method_of, run_section, seconds


def test_a_healthy_run(write_run, read):
    section = run_section(read(write_run()))
    assert section["warnings"] == []
    assert section["facts"]["method"] == "VinePPO"
    assert section["facts"]["iterations"] == "3 of 3"
    assert section["facts"]["generated tokens"] == "270"
    assert section["facts"]["time"] == "9 s"
    assert [score["name"] for score in section["accuracy"]] == ["iteration 1", "iteration 3"]
    assert [score["value"] for score in section["accuracy"]] == pytest.approx([0.1, 0.3])
    assert section["accuracy"][0]["low"] == pytest.approx(0.05)
    assert section["inspector"]["num_saved"] == len(section["inspector"]["rollouts"]) == 15


@pytest.mark.parametrize("more", [{}, {"policy/entropy": 0.5}, {"sft/nll": 1.0, "kl/reference": None}])
def test_a_chart_is_drawn_of_all_that_was_logged_and_of_nothing_else(write_run, read, more):
    run = read(write_run(**more))
    charts = run_section(run)["charts"]
    logged = {key for line in run["metrics"] for key, value in line.items() if value is not None}
    for title, _, names in CURVES:
        assert (title in charts) == bool(logged & names.keys()), title
    assert {"Accuracy", *(title for title, _, _ in PREFIXES)} <= charts.keys()
    assert all(chart["data"]["values"] for chart in charts.values())


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"optim/num_skipped_steps": 1}, "3 optimizer steps were skipped"),
        ({"critic/loss": None, "metrics/num_not_finite": 1}, "critic/loss"),
        ({"rollouts/num_truncated": 1}, "20.0% of the responses reached their token limit"),
        ({"rollouts/num_one_segment": 4}, "80.0% of the responses are one segment"),
        ({"grading/num_timeout": 2}, "6 answers ran into the grader's time limit"),
        ({"grading/num_crashed": 1}, "3 answers crashed their grader"),
        ({"rollouts/num_prompts_too_long": 1}, "3 training prompts were too long"),
        ({"eval/num_prompts_too_long": 4}, "4 evaluation prompts were too long"),
        ({"sft/num_too_long": 1}, "3 worked solutions were too long"),
    ],
)
def test_what_went_wrong_is_said(write_run, read, metrics, said):
    (warning,) = run_section(read(write_run(**metrics)))["warnings"]
    assert said in warning


def test_a_method_without_values_has_an_inspector_too(write_run, read):
    def flat(iteration):
        return [{**r, "values": None, "vines": None, "advantages": [0.5] * len(r["segments"])} for r in two_groups(1)]

    shown = run_section(read(write_run(rollouts=flat)))["inspector"]["rollouts"]
    assert {rollout["values"] for rollout in shown} == {None}


def test_methods_are_named():
    assert method_of({"credit": {"name": "rloo"}}) == "RLOO"
    assert method_of({"credit": {"name": "mine"}}) == "mine"
    assert method_of({"sft": {}}) == "SFT"
    assert method_of({"dpo": {}, "sampling": {}}) == "DPO+"


def test_a_quickstart_compares_before_and_after():
    scores = {"pass@1": 0.2, "ci95": [0.1, 0.3], "num_problems": 600}
    section = before_and_after({"sft": scores, "vineppo": {**scores, "pass@1": 0.6}, "seconds": {"total": 228.4}})
    assert [score["value"] for score in section["accuracy"]] == [0.2, 0.6]
    assert section["facts"]["time"] == "3 min 48 s"
    assert json.dumps(section)


def test_seconds_are_read_at_a_glance():
    assert [seconds(n) for n in (0.4, 61, 7300)] == ["0 s", "1 min 1 s", "2 h 1 min"]
