"""Fails unless a quickstart's result file is complete and keeps the README's promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

MIN_GAIN = 0.20
MAX_SECONDS = 360
MAX_MEMORY_MB = 4096


def main(path: Path) -> int:
    result = json.loads(path.read_text())
    problems = list(find_problems(result))
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    gain = result["vineppo"]["pass@1"] - result["sft"]["pass@1"]
    print(f"gain {gain:+.3f} in {result['seconds']['total']:.0f} s with {result['peak_memory_mb']:.0f} MB")
    return 1 if problems else 0


def find_problems(result: dict):
    shape = {
        "sft": {"pass@1", "ci95", "num_problems"},
        "vineppo": {"pass@1", "ci95", "num_problems"},
        "seconds": {"sft", "rl", "eval", "total"},
        "tokens": {"policy", "vine", "eval"},
    }
    for section, keys in shape.items():
        if set(result[section]) != keys:
            yield f"{section} has the keys {sorted(result[section])}, not {sorted(keys)}"
    for key in ("peak_memory_mb", "seed", "device", "commit"):
        if key not in result:
            yield f"{key} is missing"
    before, after = result["sft"], result["vineppo"]
    if after["pass@1"] - before["pass@1"] < MIN_GAIN:
        yield f"pass@1 {before['pass@1']:.3f} -> {after['pass@1']:.3f}: the gain is under {MIN_GAIN}"
    if after["ci95"][0] <= before["ci95"][1]:
        yield f"the intervals {before['ci95']} and {after['ci95']} overlap"
    for name in ("sft", "vineppo"):
        if result[name]["num_problems"] < 500:
            yield f"{name} was evaluated on {result[name]['num_problems']} problems, not 500 or more"
    for purpose, count in result["tokens"].items():
        if count <= 0:
            yield f"no {purpose} tokens"
    if result["seconds"]["total"] > MAX_SECONDS:
        yield f"it took {result['seconds']['total']:.0f} s, over {MAX_SECONDS}"
    if result["peak_memory_mb"] > MAX_MEMORY_MB:
        yield f"it used {result['peak_memory_mb']:.0f} MB, over {MAX_MEMORY_MB}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
