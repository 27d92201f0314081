"""Metrics of a run: metrics.jsonl, timings.jsonl, and whatever sinks the recipe asks for.

metrics.jsonl holds what recipe and seed decide, so that a run that was killed and resumed has the same file, byte for
byte, as one that was not. What the clock and the machine decide (seconds, memory) is in timings.jsonl.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from vineppo.config import Config
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

    def __init__(self, folder: Path, config: MetricsConfig, sinks: Sequence[Sink] = ()):
        self.folder = folder
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

    def write(self, iteration: int, machine: Mapping[str, float] | None = None) -> None:
        """Ends the iteration. `machine` joins the seconds in timings.jsonl."""
        metrics = {key: summarize(key, values) for key, values in self._added.items()}
        append_line(self.folder / METRICS, {"iteration": iteration} | without_nan(metrics))
        timings = self._seconds | dict(machine or {})
        append_line(self.folder / TIMINGS, {"iteration": iteration} | timings)
        for sink in self._sinks:
            sink.write(iteration, metrics | timings)
        self._added, self._seconds = {}, {}

    def truncate_after(self, iteration: int) -> None:
        """Drops the lines of iterations that will be run again, and a last line that a kill tore."""
        for path in (self.folder / METRICS, self.folder / TIMINGS):
            if path.exists():
                kept = [line for line in whole_lines(path) if json.loads(line)["iteration"] <= iteration]
                part = path.with_suffix(".part")
                write_synced(part, "".join(line + "\n" for line in kept))
                part.replace(path)

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


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    write_synced(path, json.dumps(values) + "\n", mode="a")


def write_synced(path: Path, text: str, mode: Literal["a", "w"] = "w") -> None:
    with path.open(mode) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    *lines, _ = path.read_text().split("\n")  # what follows the last line break is torn or empty
    return lines


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
        self.package.init(project=project, name=folder.name, **({"dir": str(folder)} if package == "wandb" else {}))

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.package.log(dict(metrics), step=iteration)

    def close(self) -> None:
        self.package.finish()
