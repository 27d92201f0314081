"""What a run shows in the terminal, or in a log: a bar with the time left, and a line every so many iterations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from vineppo.machine.terminal import echo, printable

NARROW = 76  # columns that a bar with everything beside it takes


@contextmanager
def make_progress(console: Console | None = None) -> Iterator[Progress]:
    """Bars that have not moved when this ends, as before a mistake that ended it, are not left on the screen."""
    console = console or Console()
    left = TextColumn("left {task.fields[left]}", markup=False)
    if console.width >= NARROW:
        name = TextColumn("{task.description:<25}", markup=False)
        columns = (name, BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), left)
    else:
        cut = Column(no_wrap=True, overflow="ellipsis")
        columns = (TextColumn("{task.description}", markup=False, table_column=cut), MofNCompleteColumn(), left)
    with Progress(*columns, console=console) as progress:
        try:
            yield progress
        finally:
            for task in progress.tasks:
                if not task.completed:
                    progress.update(task.id, visible=False)


def echo_on(console: Console) -> Callable[[str], None]:
    """Prints text as it is: no markup, no colours, no control characters, no path broken at the window's width."""

    def echo(text: str) -> None:
        console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)

    return echo


def echo_above(progress: Progress) -> Callable[[str], None]:
    """Prints above the bars."""
    return echo_on(progress.console)


class Lines:
    """A metrics sink that prints what every so many iterations brought, and how long it took since the line before.

    `alone`, where no bar stands below, they also say how far the run is.
    """

    def __init__(
        self,
        echo: Callable[[str], None] = echo,
        total: int | None = None,
        *,
        print_every: int = 1,
        alone: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.echo, self.total, self.print_every, self.alone, self.clock = echo, total, print_every, alone, clock
        self.num_done = 0  # here, without what was done before a run was resumed
        self.started = self.printed = clock()

    def set_total(self, total: int) -> None:
        self.total = total
        self.started = self.clock()  # what came before, as loading, comes once

    def write(self, iteration: int, metrics: Mapping[str, float | None]) -> None:
        self.num_done += 1
        if iteration % self.print_every == 0 or iteration == self.total or "eval/pass@1" in metrics:
            now = self.clock()
            self.echo(self.line(iteration, metrics, now - self.printed))
            self.printed = now

    def line(self, iteration: int, metrics: Mapping[str, float | None], seconds: float) -> str:
        """The few numbers one watches; all of them are in metrics.jsonl."""
        shown = [form.format(metrics[key]) for key, form in SHOWN.items() if metrics.get(key) is not None]
        if not self.alone or self.total is None:
            return "  ".join([f"{iteration:>5}", *shown, f"{seconds:.0f} s"])
        return "  ".join([f"{iteration:>5}/{self.total}", *shown, f"{seconds:.0f} s", f"left {self.left(iteration)}"])

    def left(self, iteration: int) -> str:
        """At the mean pace since the start."""
        if not self.num_done or self.total is None:
            return "-:--:--"
        pace = (self.clock() - self.started) / self.num_done
        return str(timedelta(seconds=round(pace * (self.total - iteration))))

    def close(self) -> None:
        pass


class Bar:
    """One stage of a run. A metrics sink: moves with the iterations, and has their lines printed above."""

    def __init__(self, progress: Progress, description: str, total: int | None = None, *, print_every: int = 1):
        console = progress.console
        alone = not console.is_terminal or console.is_dumb_terminal
        self.progress = progress
        self.lines = Lines(echo_above(progress), total, print_every=print_every, alone=alone)
        self.task = progress.add_task(printable(description), total=total, left="-:--:--")

    @property
    def num_done(self) -> int:
        return self.lines.num_done

    def set_total(self, total: int) -> None:
        self.lines.set_total(total)
        self.progress.update(self.task, total=total)

    def write(self, iteration: int, metrics: Mapping[str, float | None]) -> None:
        self.lines.write(iteration, metrics)
        self.progress.update(self.task, completed=iteration, left=self.lines.left(iteration))

    def close(self) -> None:
        self.lines.close()


SHOWN = {
    "reward/mean": "reward {:.3f}",
    "credit/value_mean": "V {:.3f}",
    "sft/nll": "nll {:.3f}",
    "prm/loss": "loss {:.3f}",
    "prm/explained_variance": "explained variance {:.3f}",
    "kl/reference": "KL {:.3g}",
    "tokens/policy": "{:,.0f} policy tokens",
    "tokens/vine": "{:,.0f} vine tokens",
    "eval/pass@1": "pass@1 {:.3f}",
}
