"""What a path on the command line is, and its files as plain dicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vineppo.config import read_toml
from vineppo.metrics import METRICS, TIMINGS, whole_lines
from vineppo.report.rollouts import read_rollouts
from vineppo.types import UserError


@dataclass(frozen=True)
class Source:
    """Something that becomes a section of the page."""

    kind: Literal["run", "quickstart", "comparison", "analysis"]
    path: Path


def find_sources(path: Path) -> list[Source]:
    """A file is told by what is in it, a folder by the files it has; a run brings its analyses with it."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a run, a comparison or an analysis")
    if path.is_file():
        return [Source("comparison" if "methods" in read_json(path) else "analysis", path)]
    if (path / "comparison.json").exists():
        return [Source("comparison", path / "comparison.json")]
    if (path / "recipe.toml").exists():
        return [Source("run", path), *(Source("analysis", file) for file in sorted((path / "analysis").glob("*.json")))]
    runs = [folder for folder in sorted(path.iterdir()) if (folder / "recipe.toml").exists()]
    if not runs:
        raise UserError(f"{path}: no run (recipe.toml), no comparison (comparison.json) and no folder of runs")
    runs.sort(key=lambda run: (run / "recipe.toml").stat().st_mtime)  # as they were begun
    summary = [Source("quickstart", path)] if "vineppo" in read_json_if_there(path / "result.json") else []
    return [*summary, *(source for run in runs for source in find_sources(run))]


def read_run(folder: Path, budget: int) -> dict[str, Any]:
    """All that a run's folder says; what is not there yet is empty. Rollouts take about `budget` bytes, compressed."""
    return {
        "name": folder.resolve().name,
        "recipe": read_toml(folder / "recipe.toml"),
        "recipe_text": (folder / "recipe.toml").read_text(),
        "metrics": read_lines(folder / METRICS),
        "timings": read_lines(folder / TIMINGS),
        "environment": read_json_if_there(folder / "environment.json"),
        "result": read_json_if_there(folder / "result.json"),
        "rollouts": read_rollouts(folder / "rollouts", budget),
    }


def read_analysis(path: Path) -> dict[str, Any]:
    analysis = read_json(path)
    missing = [key for key in ("title", "text", "tables", "charts") if key not in analysis]
    if missing:
        raise UserError(f"{path}: neither a comparison nor an analysis ({', '.join(missing)} is missing)")
    return {key: analysis[key] for key in ("title", "text", "tables", "charts")}


def is_finished(folder: Path) -> bool:
    """A run says so in result.json; a quickstart's summary is written when all of it is done."""
    result = read_json_if_there(folder / "result.json")
    return bool(result.get("finished") or "vineppo" in result)


def read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in whole_lines(path)] if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path}: not a file of metrics: {error}") from None


def read_json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: neither a comparison nor an analysis (no JSON object)")
    return value
