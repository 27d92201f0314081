"""What is shown of a comparison."""

from __future__ import annotations

from vineppo.report.comparison import comparison_section


def test_every_axis_has_a_curve_and_every_number_a_table(comparison):
    section = comparison_section(comparison)
    assert sum(name.startswith("Accuracy by") for name in section["charts"]) == 5
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
    assert sum(len(rows) for name, rows in section["tables"].items() if name.startswith("Curves")) == 4
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
