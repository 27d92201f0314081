"""What it costs to run a program in the sandbox: one start after the other, and many programs side by side.

    python benchmarks/sandbox.py --out benchmarks/results/sandbox-cpu.json

`interpreter` is the same process without any lock, which is what the lock's cost is to be seen beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vineppo.machine.limits import available_cores
from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.sandbox import Limits, Sandbox

PROGRAM = "def f(x):\n    x += 3\n    return x * 2\nprint(f(4))"
NAMES = {"bwrap": "bwrap", "landlock": "landlock", "none": "interpreter"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sandboxes = {name: Sandbox(backend, Limits()) for backend, name in NAMES.items()}  # type: ignore[arg-type]
    working = {name: sandbox for name, sandbox in sandboxes.items() if sandbox.works()}
    result = {
        **describe_machine(pick_device("cpu")),
        "programs": options.programs,
        "repeats": options.repeats,
        "seconds_a_start": {name: spread(starts(sandbox, options.programs)) for name, sandbox in working.items()},
        "programs_a_minute": {
            name: spread([rate(sandbox, options.programs) for _ in range(options.repeats)])
            for name, sandbox in working.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def starts(sandbox: Sandbox, num_programs: int) -> list[float]:
    """Seconds of each program, alone."""
    return [timed(lambda: sandbox.run(PROGRAM)) for _ in range(num_programs)]


def rate(sandbox: Sandbox, num_programs: int) -> float:
    """Programs a minute, as many at once as there are cores."""
    with ThreadPoolExecutor(available_cores()) as threads:
        return 60 * num_programs / timed(lambda: list(threads.map(sandbox.run, [PROGRAM] * num_programs)))


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        name: round(value, 4)
        for name, value in (("min", min(values)), ("median", statistics.median(values)), ("max", max(values)))
    }


if __name__ == "__main__":
    main()
