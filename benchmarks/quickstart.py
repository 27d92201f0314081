"""Records the quickstart of three seeds, on a machine with nothing else to do.

    python benchmarks/quickstart.py [--seeds 0 1 2]

Writes benchmarks/results/quickstart/seedN.txt, what the command printed, and seedN.json, its result and the lines of
its metrics. `python benchmarks/figures.py --write` then puts seed 0 into README.md and docs/quickstart.md. About two
minutes a seed on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import RESULTS

from vineppo.machine.files import read_json, read_lines

OUT = Path("runs/quickstart")
TO = RESULTS / "quickstart"


def record(seed: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "vineppo.cli", "quickstart", "--seed", str(seed), "--out", str(OUT)]
        printed = subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout
        keep(seed, printed, Path(home) / OUT)


def keep(seed: int, printed: str, out: Path) -> None:
    TO.mkdir(parents=True, exist_ok=True)
    (TO / f"seed{seed}.txt").write_text(printed)
    logs = {run: read_lines(out / run / "metrics.jsonl") for run in ("sft", "vineppo")}
    result = read_json(out / "result.json") | {"metrics": {"sft": logs["sft"][99::100], "vineppo": logs["vineppo"]}}
    (TO / f"seed{seed}.json").write_text(json.dumps(result, indent=1) + "\n")


def transcript() -> str:
    """What the page shows of it: all but the sentence before the first line of metrics."""
    printed = (TO / "seed0.txt").read_text()
    return printed[printed.index("  100/") :].rstrip() + "\n"


def last_table() -> str:
    """The held-out problems before and after, which stand alone in README.md."""
    lines = transcript().splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip() == "Held-out problems")
    last = next(i for i, line in enumerate(lines) if line.startswith("└"))
    return "\n".join(line.rstrip() for line in lines[first : last + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        record(seed)


if __name__ == "__main__":
    main()
