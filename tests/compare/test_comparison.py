"""The arithmetic, on run folders that are written by hand."""

from __future__ import annotations

import pytest
from run_folder import write_run

from vineppo.compare.comparison import compare_runs, kl_at


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


def test_points_are_joined_by_iteration(tmp_path):
    """RestEM may stop early: then the iterations that all seeds have make the curve."""
    folders = [
        write_run(tmp_path, "restem", 0, [0.1, 0.2, 0.3, 0.4]),
        write_run(tmp_path, "restem", 1, [0.3, 0.4]),
        write_run(tmp_path, "grpo", 0, [None, 0.5, None, 0.7]),
    ]
    methods = compare_runs(folders)["methods"]
    found = {name: [(p["iteration"], p["accuracy"]["mean"]) for p in m["curve"]] for name, m in methods.items()}
    assert found == {"restem": [(1, pytest.approx(0.2)), (2, pytest.approx(0.3))], "grpo": [(2, 0.5), (4, 0.7)]}
    assert methods["restem"]["final"]["mean"] == pytest.approx(0.4)
    assert methods["grpo"]["num_evaluations"] == 2


def test_of_methods_that_count_steps_epochs_are_joined(tmp_path):
    """DPO+ has as many steps in an epoch as it found pairs."""
    folders = [
        write_run(tmp_path, "dpo", 0, [None, 0.2, None, 0.4], section="dpo"),
        write_run(tmp_path, "dpo", 1, [None, None, 0.3, None, None, 0.5], section="dpo"),
    ]
    (dpo,) = compare_runs(folders)["methods"].values()
    assert [(p["iteration"], p["accuracy"]["mean"]) for p in dpo["curve"]] == [
        (2.5, pytest.approx(0.25)),
        (5, pytest.approx(0.45)),
    ]


def test_only_those_that_start_there_get_the_start_as_first_point(tmp_path):
    start = write_run(tmp_path, "sft", 5, [0.2])
    ours = write_run(tmp_path, "grpo", 0, [0.3], model=str(start))
    theirs = write_run(tmp_path, "rloo", 0, [0.3], model="elsewhere")
    found = compare_runs([ours, theirs], start=start)
    assert [len(run["points"]) for run in found["runs"]] == [2, 1]
    assert found["initial_accuracy"] == 0.2
    assert any("model.name" in warning and "elsewhere" in warning for warning in found["warnings"])
