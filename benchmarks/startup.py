"""How long one waits for an answer that computes nothing: the help, a recipe with its defaults, a typo.

    python benchmarks/startup.py --out benchmarks/results/startup-cpu.json

Every time is one of a whole process, from its start to its end, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vineppo.machine.runtime import describe_machine, pick_device

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "recipes" / "compare" / "vineppo.toml")
COMMANDS = {
    "--help": ["--help"],
    "config show": ["config", "show", RECIPE],
    "config diff": ["config", "diff", RECIPE, str(ROOT / "recipes" / "compare" / "grpo.toml")],
    "a typo in a command": ["trian", RECIPE],
    "a typo in a recipe's key": ["train", RECIPE, "credit.num_vine=3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds = {name: measure(argv, options.repeats) for name, argv in COMMANDS.items()}
    result = {**describe_machine(pick_device("cpu")), "repeats": options.repeats, "seconds": seconds}
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(argv: Sequence[str], repeats: int) -> dict[str, float]:
    time_once(argv)  # the disk's cache, and Python's of compiled files
    times = [time_once(argv) for _ in range(repeats)]
    found = {"min": min(times), "median": statistics.median(times), "max": max(times)}
    return {name: round(value, 3) for name, value in found.items()}


def time_once(argv: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vineppo.cli", *argv], capture_output=True, cwd=ROOT)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
