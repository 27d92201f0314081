"""The tables' arithmetic, on run folders that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import stdev

import pytest

from vineppo.comparison import compare_runs, interval, kl_at, to_markdown
from vineppo.types import UserError


def write_run(root: Path, method: str, seed: int, accuracies: list[float], *, vines: int = 0) -> Path:
    """Every iteration: 4 steps, 8 rollouts, 100 tokens, 2 s of work and, where accuracy is known, an evaluation."""
    folder = root / f"{method}-{seed}"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(f'name = "{method}"\nseed = {seed}\n[credit]\nname = "{method}"\n')
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "num_threads": 1, "commit": "abc"}))
    metrics, timings = [], []
    for i, accuracy in enumerate(accuracies, 1):
        metrics.append(
            {"iteration": i, "optim/num_steps": 4, "rollouts/num": 8, "tokens/policy": 100, "tokens/vine": vines}
            | {"tokens/eval": 999, "eval/pass@1": accuracy, "eval/kl_reference": 0.1 * i}
            | {"reward/mean": accuracy / 2, "memory/policy_parameters_mb": 3.5}
        )
        timings.append({"iteration": i, "seconds/sample": 0.5, "seconds/update": 1.5, "memory/peak_mb": 100.0 + i})
        timings[-1] |= {"seconds/evaluate": 50.0, "seconds/checkpoint": 9.0}
    for name, lines in (("metrics", metrics), ("timings", timings)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def comparison(tmp_path):
    start = tmp_path / "sft"
    start.mkdir()
    (start / "result.json").write_text(json.dumps({"pass@1": 0.2}))
    folders = [
        write_run(tmp_path, "vineppo", 0, [0.3, 0.5, 0.6], vines=900),
        write_run(tmp_path, "vineppo", 1, [0.4, 0.6, 0.5], vines=900),
        write_run(tmp_path, "ppo", 0, [0.3, 0.4, 0.4]),
        write_run(tmp_path, "ppo", 1, [0.3, 0.3, 0.5]),
    ]
    return compare_runs(folders, start=start)


def test_points_add_up_and_leave_evaluation_out(comparison):
    curve = comparison["methods"]["vineppo"]["curve"]
    assert [point["accuracy"]["mean"] for point in curve] == pytest.approx([0.2, 0.35, 0.55, 0.55])
    assert curve[0]["tokens"] == curve[0]["seconds"] == 0
    assert (curve[3]["iteration"], curve[3]["steps"], curve[3]["rollouts"]) == (3, 12, 24)
    assert (curve[3]["tokens"], curve[3]["seconds"]) == (3000, 6)
    assert curve[1]["train_accuracy"] == pytest.approx(0.175)


def test_peak_last_and_the_differences_seed_by_seed(comparison):
    ours, theirs = comparison["methods"]["vineppo"], comparison["methods"]["ppo"]
    assert (ours["peak"]["mean"], ours["final"]["mean"]) == pytest.approx((0.6, 0.55))
    assert (theirs["peak"]["mean"], theirs["final"]["mean"]) == pytest.approx((0.45, 0.45))
    difference = comparison["differences"]["ppo"]["peak"]
    assert difference["mean"] == pytest.approx(0.15)  # of 0.6 - 0.4 and 0.6 - 0.5
    assert difference["ci95"] == pytest.approx([0.15 - 12.706 * 0.05, 0.15 + 12.706 * 0.05], abs=1e-3)


def test_what_it_takes_to_reach_ppo_s_peak(comparison):
    assert comparison["target"] == pytest.approx(0.45)
    ours, theirs = (comparison["methods"][name]["to_target"] for name in ("vineppo", "ppo"))
    assert (ours["num_reached"], ours["iteration"], ours["steps"], ours["tokens"]) == (2, 2, 8, 2000)
    assert (theirs["num_reached"], theirs["num_seeds"], theirs["iteration"]) == (1, 2, 3)


def test_kl_is_read_between_the_evaluations_around_the_level(comparison):
    points = [{"accuracy": a, "kl": k} for a, k in ((0.2, 0.0), (0.4, 1.0), (0.3, 2.0))]
    assert kl_at(points, 0.3) == pytest.approx(0.5)
    assert kl_at(points, 0.4) == pytest.approx(1.0)
    assert kl_at(points, 0.5) is None
    assert comparison["equal_accuracy"] == pytest.approx(0.45)
    assert comparison["methods"]["ppo"]["kl_at_equal_accuracy"]["n"] == 1


def test_memory_and_seconds_are_per_iteration_by_what_they_are_spent_on(comparison):
    method = comparison["methods"]["ppo"]
    assert method["memory_mb"] == {"policy_parameters_mb": 3.5, "peak_mb": 103.0}
    assert method["seconds_per_iteration"] == {"sample": 0.5, "update": 1.5, "evaluate": 50.0, "checkpoint": 9.0}
    assert method["tokens_per_iteration"]["policy"] == 100


def test_the_interval_is_student_s():
    values = [0.1, 0.4, 0.2, 0.9, 0.5]
    half = 2.776445 * stdev(values) / 5**0.5
    assert interval(values)["ci95"] == pytest.approx([0.42 - half, 0.42 + half], abs=1e-4)
    assert interval([0.3]) == {"mean": 0.3, "ci95": None, "n": 1}
    assert interval([]) == {"mean": None, "ci95": None, "n": 0}


def test_every_method_is_in_every_table(comparison):
    sections = to_markdown(comparison).split("## ")[1:]
    assert len(sections) == 8
    for section in sections:
        assert "| ppo |" in section
        assert "| vineppo |" in section or section.startswith("VinePPO less each method")
    assert "0.600 [" in sections[0]


def test_a_folder_that_is_no_run_and_one_without_an_evaluation(tmp_path):
    with pytest.raises(UserError, match="not a run"):
        compare_runs([tmp_path])
    folder = write_run(tmp_path, "ppo", 0, [])
    with pytest.raises(UserError, match="no evaluation yet"):
        compare_runs([folder])
