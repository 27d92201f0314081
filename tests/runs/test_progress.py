"""What is told of a run while it goes on, in a log and on a screen."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from vineppo.runs.progress import Bar, Lines, echo_on, make_progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(total: int, *, done_before: int = 0, print_every: int = 1, seconds: float = 30.0, **how) -> list[str]:
    """Of a run whose iterations all take the same time, after 5 seconds of loading."""
    said, clock = [], Clock()
    lines = Lines(said.append, print_every=print_every, clock=clock, **how)
    clock.now += 5
    lines.set_total(total)
    for iteration in range(done_before + 1, total + 1):
        clock.now += seconds
        lines.write(iteration, {"reward/mean": 0.5, "seconds/update": 1.0})
    return said


def test_a_log_says_how_far_how_long_and_how_much_longer():
    assert lines_of(4) == [
        "    1/4  reward 0.500  35 s  left 0:01:30",
        "    2/4  reward 0.500  30 s  left 0:01:00",
        "    3/4  reward 0.500  30 s  left 0:00:30",
        "    4/4  reward 0.500  30 s  left 0:00:00",
    ]


def test_the_seconds_are_those_since_the_line_before():
    assert lines_of(25, print_every=10, seconds=2.0) == [
        "   10/25  reward 0.500  25 s  left 0:00:30",
        "   20/25  reward 0.500  20 s  left 0:00:10",
        "   25/25  reward 0.500  10 s  left 0:00:00",
    ]


def test_a_resumed_run_is_judged_by_its_own_pace():
    assert lines_of(100, done_before=98) == [
        "   99/100  reward 0.500  35 s  left 0:00:30",
        "  100/100  reward 0.500  30 s  left 0:00:00",
    ]


def test_above_a_bar_the_line_need_not_say_it():
    assert lines_of(2, alone=False) == ["    1  reward 0.500  35 s", "    2  reward 0.500  30 s"]


def test_a_number_that_is_not_there_is_not_shown():
    said = []
    Lines(said.append).write(1, {"reward/mean": None, "sft/nll": 0.25})
    assert said == ["    1  nll 0.250  0 s"]


def show(width: int, *, num_iterations: int, terminal: bool = False) -> str:
    screen = StringIO()
    console = Console(file=screen, width=width, force_terminal=terminal, color_system=None)
    with make_progress(console) as progress:
        bar = Bar(progress, "iterations")
        bar.set_total(12)
        for iteration in range(num_iterations):
            bar.write(iteration + 1, {"reward/mean": 0.5})
    return screen.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_a_bar_is_readable_at_any_width(width):
    last = show(width, num_iterations=12).splitlines()[-1]
    assert last.startswith("iterations")
    assert "12/12" in last
    assert len(last.rstrip()) <= width
    assert ("\u2501" in last) == (width >= 80)
    if width >= 40:
        assert last.rstrip().endswith("left 0:00:00")


def test_a_bar_that_never_moved_is_not_left_there():
    assert "iterations" not in show(80, num_iterations=0)


def test_on_a_terminal_the_bar_says_how_far_in_a_log_the_lines_do():
    assert "1/12  reward" not in show(80, num_iterations=2, terminal=True)
    assert "1/12  reward" in show(80, num_iterations=2)


@pytest.mark.parametrize("text", ["a[/b]c", "[red]x", ":bomb: [link=http://x]y", "\x1b]0;t\x07\x1b[2J", "x" * 300])
def test_text_is_said_as_it_is(text):
    screen = StringIO()
    echo_on(Console(file=screen, width=40, force_terminal=True))(text)
    with make_progress(Console(file=screen, width=400)) as progress:
        Bar(progress, text, 1).write(1, {})
    shown = text.replace("\x1b", "\\x1b").replace("\x07", "\\x07")
    assert screen.getvalue().startswith(f"{shown}\n")
    assert screen.getvalue().count(shown) == 2
