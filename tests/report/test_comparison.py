"""What is shown of a comparison."""

from __future__ import annotations

import pytest

from vineppo.compare.tables import comparison_tables
from vineppo.report.comparison import AXIS_NAMES, TITLES, comparison_section, shown_charts, shown_tables


def test_every_axis_has_a_curve_and_every_number_a_table(comparison):
    section = comparison_section(comparison)
    assert {f"Accuracy by {name}" for name in AXIS_NAMES.values()} <= section["charts"].keys()
    for name in ("Peak accuracy", "Train and test accuracy", "KL at equal accuracy", "Peak memory"):
        assert section["charts"][name]["data"]["values"]
    assert section["tables"]["Test accuracy"][0] == {
        "method": "vineppo",
        "peak": 0.6,
        "peak, low": 0.5,
        "peak, high": 0.7,
        "last": 0.6,
        "last, low": 0.5,
        "last, high": 0.7,
        "seeds": 2,
    }
    assert section["tables"].keys() == {TITLES[key] for key, rows in comparison_tables(comparison).items() if rows}
    curves = section["tables"][TITLES["curves"]]
    assert len(curves) == sum(len(method["curve"]) for method in comparison["methods"].values())
    assert "DPO+" in section["charts"]["Accuracy by iteration"]["title"]
    assert section["warnings"] == []


def test_one_seed_has_no_interval_and_a_level_nobody_reached_no_bar(comparison):
    for method in comparison["methods"].values():
        method["peak"] = {"mean": 0.5, "ci95": None, "n": 1}
        method["kl_at_equal_accuracy"] = {"mean": None, "ci95": None, "n": 0}
    section = comparison_section(comparison)
    assert "no interval" in section["text"]
    assert len(section["charts"]["Peak accuracy"]["layer"]) == 1  # bars without whiskers
    assert section["tables"]["Test accuracy"][0]["peak, low"] is None
    assert section["charts"]["KL at equal accuracy"]["data"]["values"] == []


def test_runs_that_failed_are_named(comparison):
    assert "ppo-seed1" in comparison_section({**comparison, "failed": ["ppo-seed1"]})["warnings"][0]


def test_what_makes_runs_hard_to_compare_is_shown(comparison):
    assert comparison_section({**comparison, "warnings": ["other commits"]})["warnings"] == ["other commits"]


def test_parts_are_picked_by_key_and_a_wrong_key_is_no_empty_result(comparison):
    assert list(shown_tables(comparison, ["kl", "accuracy"])) == ["KL at equal accuracy", "Test accuracy"]
    assert list(shown_charts(comparison, ["memory"])) == ["Peak memory"]
    for pick in (shown_tables, shown_charts):
        with pytest.raises(KeyError):
            pick(comparison, ["Memory, MiB"])


def test_without_training_rewards_there_is_nothing_to_draw_them_against(comparison):
    for method in comparison["methods"].values():
        for point in method["curve"]:
            point["train_accuracy"] = None
    assert shown_charts(comparison, ["train_and_test"]) == {}
