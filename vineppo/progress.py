"""What a run shows in the terminal: a bar with the time left, and a line per iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def make_progress(console: Console | None = None) -> Progress:
    return Progress(
        TextColumn("{task.description:<25}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def speaker(progress: Progress) -> Callable[[str], None]:
    """Prints above the bars, as it is: no markup, and never a path broken at the window's width."""
    return partial(progress.console.print, markup=False, highlight=False, soft_wrap=True)


class Bar:
    """One stage of a run. As a metrics sink it moves with the iterations and prints what every so many brought."""

    def __init__(self, progress: Progress, description: str, total: int | None = None, *, print_every: int = 1):
        self.progress, self.print_every = progress, print_every
        self.task = progress.add_task(description, total=total)

    def set_total(self, total: int) -> None:
        self.progress.update(self.task, total=total)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.progress.update(self.task, completed=iteration)
        if iteration % self.print_every == 0 or "eval/pass@1" in metrics:
            speaker(self.progress)(line(iteration, metrics))

    def close(self) -> None:
        pass


class Lines:
    """A metrics sink for output that goes to a file."""

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        print(line(iteration, metrics))

    def close(self) -> None:
        pass


SHOWN = {
    "reward/mean": "reward {:.3f}",
    "credit/value_mean": "V {:.3f}",
    "sft/nll": "nll {:.3f}",
    "kl/reference": "KL {:.3g}",
    "tokens/policy": "{:,.0f} policy tokens",
    "tokens/vine": "{:,.0f} vine tokens",
    "eval/pass@1": "pass@1 {:.3f}",
}


def line(iteration: int, metrics: Mapping[str, float]) -> str:
    """The few numbers one watches; all of them are in metrics.jsonl."""
    shown = [form.format(metrics[key]) for key, form in SHOWN.items() if key in metrics]
    seconds = sum(value for key, value in metrics.items() if key.startswith("seconds/"))
    return f"{iteration:>5}  " + "  ".join([*shown, f"{seconds:.0f} s"] if seconds >= 0.5 else shown)
