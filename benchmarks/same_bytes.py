"""Whether two commits train the same, byte for byte: runs both on this machine and compares everything they decide.

    python benchmarks/same_bytes.py OLD [NEW]        # commits; NEW is HEAD by default. About ten minutes on two cores

The quickstart, the six methods with two seeds after one SFT, the exact world, and every analysis of a run, each
through the command line of a checkout of its own. Compared are metrics, rollouts, weights, tables and analyses; times,
memory, versions and commits are left out. Writes benchmarks/results/same-bytes/OLD-NEW.json, and fails on a difference.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "same-bytes"
SHORT = (
    *("evaluation.num_problems=100", "train.num_iterations=2", "train.save_rollouts_every=1"),
    *("restem.num_iterations=2", "restem.validation.num_problems=40", "dpo.num_epochs=1", "sft.num_problems=3200"),
)
ANALYSIS = ("num_problems=8", "num_reference=16", "num_draws=12", "num_minibatches=4", "vines=[1,3]")
DECIDED = ("*/metrics.jsonl", "*/rollouts/*.gz", "*.safetensors", "comparison.json", "exact.json", "analysis/*.json")
CLOCK = ("seconds", "memory", "peak_memory")
"""What begins so, in small or capital letters, is a measurement."""
MACHINE = {"environment", "device", "num_threads", "commit", "commits", "runs", "warnings"}


def commands(checkout: Path) -> list[list[str]]:
    recipes = sorted(map(str, (checkout / "recipes" / "compare").glob("*.toml")))
    run = "runs/compare/vineppo-seed0"
    return [
        ["quickstart", "--seed", "0"],
        ["compare", *recipes, "--seeds", "0,1", *SHORT],
        ["exact", "--batches", "20", "--json", "exact.json"],
        ["analyze", run, "--kind", "all", *ANALYSIS],
    ]


def run(commit: str, place: Path) -> dict[str, str]:
    """The digests of all that the commit's commands decided, by file."""
    checkout, work = place / "checkout", place / "work"
    work.mkdir(parents=True)
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(checkout), commit], check=True)
    try:
        for arguments in commands(checkout):
            command = [sys.executable, "-m", "vineppo.cli", *arguments]
            subprocess.run(command, cwd=work, env=os.environ | {"PYTHONPATH": str(checkout)}, check=True)
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(checkout)], check=True)
    files = {path for pattern in DECIDED for path in work.rglob(pattern) if path.is_file()}
    return {path.relative_to(work).as_posix(): digest(path) for path in sorted(files)}


def digest(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if path.suffix == ".json":
        raw = json.dumps(decided(json.loads(raw)), sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()


def decided(value: Any) -> Any:
    """Without what a machine or a moment decides."""
    if isinstance(value, dict):
        kept = {key for key in value if key not in MACHINE and not key.lower().startswith(CLOCK)}
        return {key: decided(value[key]) for key in kept}
    return [decided(below) for below in value] if isinstance(value, list) else value


def name_of(commit: str) -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", commit]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    args = parser.parse_args()
    old, new = name_of(args.old), name_of(args.new)
    with tempfile.TemporaryDirectory() as place:
        before, after = run(old, Path(place) / "old"), run(new, Path(place) / "new")
    different = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    OUT.mkdir(parents=True, exist_ok=True)
    result = {"old": old, "new": new, "num_files": len(before), "different": different, "sha256": after}
    (OUT / f"{old}-{new}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(before)} files, {len(different)} different", *different, sep="\n")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
