"""Metrics of a run: metrics.jsonl, timings.jsonl, and whatever sinks the recipe asks for.

metrics.jsonl holds what recipe and seed decide, so that a run that was killed and resumed has the same file, byte for
byte, as one that was not. What the clock and the machine decide (seconds, memory) is in timings.jsonl.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from vineppo.config import Config
from vineppo.machine.files import append_line, read_lines, whole_lines, write_file
from vineppo.types import UserError

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


class MetricsConfig(Config):
    """metrics.jsonl is always written; these are besides it."""

    tensorboard: bool = False
    wandb: str | None = None
    """Weights & Biases project; works offline with WANDB_MODE=offline."""
    trackio: str | None = None
    """trackio project."""


class Sink(Protocol):
    def write(self, iteration: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Collects one iteration's metrics, then writes them as one line.

    A key that is added several times (once per optimizer step) becomes one number: the largest for `..._max`, the sum
    for `.../num_...` and `tokens/...`, the mean for all others.
    """

    def __init__(self, folder: Path, config: MetricsConfig, sinks: Sequence[Sink] = (), *, iteration: int = 0):
        self.folder = folder
        self.iteration = iteration  # the last one that has its line
        self._added: dict[str, list[Any]] = {}
        self._seconds: dict[str, float] = {}
        self._sinks = [*make_sinks(config, folder), *sinks]

    def add(self, metrics: Mapping[str, Any]) -> None:
        for key, value in metrics.items():
            self._added.setdefault(key, []).append(value)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds spent inside to `seconds/name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            key = f"seconds/{name}"
            self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - started

    def pending(self) -> dict[str, Any]:
        """What the line would hold if it were written now. Added to a log again, it comes out the same."""
        return {key: summarize(key, values) for key, values in self._added.items()}

    def write(self, iteration: int, machine: Mapping[str, float] | None = None) -> None:
        """Ends the iteration. `machine` joins the seconds in timings.jsonl.

        That file is first: an iteration is done once metrics.jsonl has its line.
        """
        metrics, timings = self.pending(), self._seconds | dict(machine or {})
        append_line(self.folder / TIMINGS, {"iteration": iteration} | timings)
        append_line(self.folder / METRICS, {"iteration": iteration} | without_nan(metrics))
        for sink in self._sinks:
            sink.write(iteration, metrics | timings)
        self._added, self._seconds = {}, {}
        self.iteration = iteration

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def summarize(key: str, values: Sequence[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    if not all(map(math.isfinite, values)):  # max overlooks nan, and fsum refuses inf - inf
        return math.nan
    if key.endswith("_max"):
        return max(values)
    total = math.fsum(values)
    if key.split("/")[-1].startswith("num_") or key.startswith("tokens/"):
        return int(total) if total.is_integer() else total
    return total / len(values)


def without_nan(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no nan and no infinity: such a value becomes null, and `metrics/num_not_finite` counts them."""
    bad = {key for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    clean = {key: None if key in bad else value for key, value in metrics.items()}
    return clean | ({"metrics/num_not_finite": len(bad)} if bad else {})


def mend_logs(folder: Path, iteration: int, *, may_owe: bool, echo: Callable[[str], None]) -> bool:
    """Cuts both files back to what a checkpoint of `iteration` has behind it; whether its own line is still owed.

    That is where the run was killed between the checkpoint and the line, which it may be where `may_owe`. Raises
    UserError where lines are missing, repeated or damaged. Lost times cannot be measured again and are left empty.
    """
    metrics = kept_lines(folder / METRICS, iteration)
    owed = may_owe and iteration not in metrics
    missing = [i for i in range(1, iteration + (not owed)) if i not in metrics]
    if missing:
        raise UserError(
            f"{folder / METRICS}: {iterations(missing)} missing, which the checkpoint of iteration {iteration} has "
            "behind it; restore the file, or remove the checkpoints after the gap to run from there again"
        )
    timings = kept_lines(folder / TIMINGS, iteration - owed)
    lost = [i for i in metrics if i not in timings]
    if lost:
        echo(f"{folder / TIMINGS}: {iterations(lost)} missing; their times are left empty")
    whole = {i: timings.get(i, f'{{"iteration": {i}}}') for i in metrics}
    for path, lines in ((folder / METRICS, metrics), (folder / TIMINGS, whole)):
        text = "".join(line + "\n" for line in lines.values())
        if (path.read_bytes() if path.exists() else b"") != text.encode():
            write_file(path, text)
    return owed


def kept_lines(path: Path, last: int) -> dict[int, str]:
    """Iteration -> its line, up to `last`; raises UserError where they do not rise, or are not lines of a log."""
    if last == 0 or not path.exists():
        return {}
    what_to_do = "restore the file, or choose another --out"
    try:
        parsed = read_lines(path)
    except UserError as error:
        raise UserError(f"{error}; {what_to_do}") from None
    found: dict[int, str] = {}
    for number, (line, text) in enumerate(zip(parsed, whole_lines(path), strict=True), 1):
        iteration = line.get("iteration")
        if type(iteration) is not int or iteration < 1:
            raise UserError(f"{path}:{number}: iteration is missing or no number; {what_to_do}")
        if iteration <= max(found, default=0):
            raise UserError(f"{path}:{number}: iteration {iteration} comes again; {what_to_do}")
        found[iteration] = text
    return {iteration: text for iteration, text in found.items() if iteration <= last}


def iterations(numbers: Sequence[int]) -> str:
    return (
        f"the line of iteration {numbers[0]} is"
        if len(numbers) == 1
        else (f"the lines of {len(numbers)} iterations from {numbers[0]} to {numbers[-1]} are")
    )


def make_sinks(config: MetricsConfig, folder: Path) -> list[Sink]:
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder))
    if config.wandb:
        sinks.append(Tracker("wandb", config.wandb, folder))
    if config.trackio:
        sinks.append(Tracker("trackio", config.trackio, folder))
    return sinks


class TensorBoard:
    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError('metrics.tensorboard needs an extra: pip install "vineppo[tensorboard]"') from None
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(key, value, iteration)

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """Weights & Biases, and trackio, which has the same three calls."""

    def __init__(self, package: str, project: str, folder: Path):
        import importlib

        try:
            self.package = importlib.import_module(package)
        except ImportError:
            raise UserError(f"metrics.{package} needs the package: pip install {package}") from None
        resumed = "allow" if (folder / METRICS).exists() else "never"
        options = {"dir": str(folder)} if package == "wandb" else {"resume": resumed}
        self.package.init(project=project, name=folder.name, **options)

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.package.log(dict(metrics), step=iteration)

    def close(self) -> None:
        self.package.finish()
