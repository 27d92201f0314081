"""A run that is killed and resumed is the run that was not killed, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def contents(run: Path) -> dict[str, bytes]:
    files = ["metrics.jsonl", "result.json", *(str(p.relative_to(run)) for p in run.glob("rollouts/*"))]
    last = sorted((run / "checkpoints").glob("iteration-*"))[-1]
    files += [str((last / name).relative_to(run)) for name in ("model.safetensors", "trainer.pt", "trainer.json")]
    return {name: (run / name).read_bytes() for name in files}


def test_kill_9_at_ten_moments_changes_nothing(tmp_path):
    survive = [sys.executable, str(HERE / "survive.py"), str(tmp_path), "10"]
    report = json.loads(subprocess.run(survive, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert report["kills"] == 10, report
    assert report["kills_while_saving"] >= 1, report
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert len(whole["metrics.jsonl"].splitlines()) == 10
