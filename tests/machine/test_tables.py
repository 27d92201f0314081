from __future__ import annotations

import pytest

from vineppo.machine.tables import aligned, markdown, number


@pytest.mark.parametrize(
    ("value", "shown"), [(0.12345, "0.123"), (99.94, "99.9"), (123.4, "123"), (999.7, "1,000"), (-12_345.6, "-12,346")]
)
def test_numbers_have_three_digits_or_all_in_front_of_the_point(value, shown):
    assert number(value) == shown


def test_columns_are_those_of_all_rows():
    rows = [{"name": "a", "n": 1}, {"name": "b", "m": 0.5}]
    assert markdown(rows).splitlines() == [
        "| name | n | m |",
        "| --- | --- | --- |",
        "| a | 1 | - |",
        "| b | - | 0.5 |",
    ]
    assert aligned(rows).splitlines() == ["name  n    m", "a     1    -", "b     -  0.5"]


def test_no_rows_are_no_table():
    assert markdown([]) == aligned([]) == ""


def test_a_long_table_says_what_it_leaves_out():
    rows = [{"n": i} for i in range(25)]
    assert aligned(rows).splitlines()[-2:] == ["19", "(and 5 rows more)"]
