"""Every number of a comparison stands in one table, whose rows Markdown and the page both show."""

from __future__ import annotations

import re

import pytest
from run_folder import write_run

from vineppo.compare.comparison import compare_runs
from vineppo.compare.finished_runs import AXES
from vineppo.compare.tables import comparison_tables, markdown_tables, to_markdown
from vineppo.report.comparison import AXIS_NAMES, TITLES, shown_tables

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")


def test_every_table_is_in_markdown_and_on_the_page(comparison):
    tables = comparison_tables(comparison)
    assert all(tables.values())
    assert tables.keys() == markdown_tables(comparison).keys() == TITLES.keys()
    assert len(to_markdown(comparison).split("## ")) == 1 + len(tables)
    assert list(shown_tables(comparison)) == list(TITLES.values())
    assert set(AXES) == AXIS_NAMES.keys()


def test_every_method_is_in_every_table(comparison):
    ours, theirs = ({"| vineppo |", "| ppo |"}, {"| ppo |"})
    for key, text in markdown_tables(comparison).items():
        assert {name for name in ours if name in text} == (theirs if key == "differences" else ours), key


def test_the_page_and_markdown_show_the_same_numbers(comparison):
    """Of a row every number; Markdown rounds them, and names an interval's ends beside its mean."""
    texts = markdown_tables(comparison)
    for key, title in TITLES.items():
        lines = texts[key].splitlines()[2:]
        rows = shown_tables(comparison, [key])[title]
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            shown = [float(text.replace(",", "")) for text in NUMBER.findall(line)]
            for value in row.values():
                if isinstance(value, float):
                    assert any(value == pytest.approx(other, rel=5e-3, abs=5e-4) for other in shown), (key, value)


def test_a_method_without_a_part_spent_nothing_on_it(comparison):
    """Only vineppo's runs have vines."""
    del comparison["methods"]["ppo"]["tokens_per_iteration"]["vine"]
    ours, theirs = comparison_tables(comparison)["tokens"]
    assert (ours["vine"], theirs["vine"]) == (900, None)
    assert "| ppo | 999 | 100 | 0 |" in markdown_tables(comparison)["tokens"]


def test_a_mean_and_its_interval_are_one_cell(comparison):
    assert "| vineppo | 0.600 [0.600, 0.600] |" in markdown_tables(comparison)["accuracy"]


def test_one_seed_claims_no_interval(tmp_path):
    text = to_markdown(compare_runs([write_run(tmp_path, name, 0, [0.3, 0.5]) for name in ("vineppo", "ppo")]))
    assert "interval" not in text
    assert "| vineppo | 0.5 | 0.5 | 1 | 2 |" in text


def test_names_cannot_break_a_table(tmp_path):
    text = to_markdown(compare_runs([write_run(tmp_path, "a|b\\u001b[2J", 0, [0.3])]))
    assert "a\\|b\\x1b[2J" in text
    assert "\x1b" not in text
