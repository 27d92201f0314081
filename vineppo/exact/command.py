"""`vineppo exact`: measures worlds, one process each, and shows what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vineppo.exact.measure import measure_world
from vineppo.exact.show import LEGEND, save_figures, tables
from vineppo.exact.worlds import check_names, find_world
from vineppo.machine.files import write_json
from vineppo.machine.limits import available_cores
from vineppo.types import UserError


def exact(
    names: Sequence[str], num_batches: int, seed: int, json_file: Path | None = None, figures: Path | None = None
) -> None:
    """No names are all worlds. Raises UserError for a name that is none."""
    result = measure(names, num_batches, seed)
    if json_file:
        write_json(json_file, result)
    if figures:
        figures.mkdir(parents=True, exist_ok=True)
        save_figures(result, figures)
    console = Console()
    for table in tables(result):
        console.print(table)
    console.print(LEGEND, markup=False, highlight=False)


def measure(names: Sequence[str], num_batches: int, seed: int) -> dict[str, Any]:
    """What goes into the JSON file. The seed decides it, however many processes there are."""
    if num_batches < 2:
        raise UserError(f"--batches must be at least 2, got {num_batches}")
    names = check_names(names)
    measured = track(
        measure_each(names, num_batches, seed), "worlds", len(names), transient=True, console=Console(stderr=True)
    )
    by_name = {world["name"]: world for world in measured}
    return {"seed": seed, "num_batches": num_batches, "worlds": [by_name[name] for name in names]}


def measure_each(names: Sequence[str], num_batches: int, seed: int) -> Iterator[dict[str, Any]]:
    """In the order in which they are done, the longest chains begun first."""
    one = partial(measure_called, num_batches=num_batches, seed=seed)
    num_processes = min(available_cores(), len(names))
    if num_processes == 1:
        yield from map(one, names)
        return
    longest_first = sorted(names, key=lambda name: -find_world(name).budget)
    with ProcessPoolExecutor(num_processes, get_context("forkserver")) as pool:
        for future in as_completed([pool.submit(one, name) for name in longest_first]):
            yield future.result()


def measure_called(name: str, *, num_batches: int, seed: int) -> dict[str, Any]:
    return measure_world(find_world(name), num_batches, seed)
