"""What a path on the command line is, and its files as plain dicts. What is damaged is named with its file and line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vineppo.config import read_toml
from vineppo.machine import files
from vineppo.methods import METHODS
from vineppo.report.rollouts import read_rollouts
from vineppo.runs.metrics import METRICS, TIMINGS
from vineppo.types import UserError

SECTIONS = ("model", "task", "credit", *METHODS)
"""Of a recipe: those that are read here."""


@dataclass(frozen=True)
class Source:
    """Something that becomes a section of the page."""

    kind: Literal["run", "quickstart", "comparison", "analysis"]
    path: Path


def find_sources(path: Path) -> list[Source]:
    """A file is told by what is in it, a folder by the files it has; a run brings its analyses with it."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a run, a comparison or an analysis")
    if not path.is_dir():
        return [Source("comparison" if "methods" in files.read_json(path) else "analysis", path)]
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
        "recipe": read_recipe(folder / "recipe.toml"),
        "recipe_text": (folder / "recipe.toml").read_text(),
        "metrics": read_metrics(folder / METRICS),
        "timings": read_metrics(folder / TIMINGS),
        "environment": read_json_if_there(folder / "environment.json"),
        "result": read_json_if_there(folder / "result.json"),
        "rollouts": read_rollouts(folder / "rollouts", budget),
    }


def read_recipe(path: Path) -> dict[str, Any]:
    recipe = read_toml(path)
    for key in SECTIONS:
        if not isinstance(recipe.get(key, {}), Mapping):
            raise UserError(f"{path}: {key} = {recipe[key]!r}: must be a section")
    shape = recipe.get("model", {}).get("from_scratch", {})
    if not isinstance(shape, Mapping):
        raise UserError(f"{path}: model.from_scratch = {shape!r}: must be a section")
    for key in METHODS:
        total = recipe.get(key, {}).get("num_iterations", 0)
        if not isinstance(total, int):
            raise UserError(f"{path}: {key}.num_iterations = {total!r}: must be a whole number")
    return recipe


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """A line per iteration, a number or nothing for every key. A file that is not there yet has no lines."""
    lines = files.read_lines(path) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not isinstance(line.get("iteration"), int):
            raise UserError(f"{path}:{number}: the field 'iteration' is missing or not a whole number")
        for key, value in line.items():
            if value is not None and not is_number(value):
                raise UserError(f"{path}:{number}: the field {key!r} is not a number")
    return lines


def is_number(value: Any) -> bool:
    """Finite, and no larger than a float can be."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def read_analysis(path: Path) -> dict[str, Any]:
    analysis = files.read_json(path)
    kinds = {"title": str, "text": str, "tables": dict, "charts": dict}
    missing = [key for key, kind in kinds.items() if not isinstance(analysis.get(key), kind)]
    if missing:
        raise UserError(f"{path}: neither a comparison nor an analysis ({', '.join(missing)} is missing or no text)")
    for name, rows in analysis["tables"].items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: tables.{name} is not a list of rows, each an object")
    for name, chart in analysis["charts"].items():
        if not isinstance(chart, dict):
            raise UserError(f"{path}: charts.{name} is not an object")
    return {key: analysis[key] for key in kinds}


def is_finished(folder: Path) -> bool:
    """A run says so in result.json; a quickstart's summary is written when all of it is done."""
    result = read_json_if_there(folder / "result.json")
    return bool(result.get("finished") or "vineppo" in result)


def read_json_if_there(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.exists() else {}
