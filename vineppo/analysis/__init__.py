"""Analyses: what the paper measures of value estimates and credit, on runs that were made.

ANALYSES maps `vineppo analyze --kind` to a function from checkpoints and an AnalysisConfig to a Result;
OF_FILES has those that only read what runs have written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vineppo.analysis import (
    action_ranking,
    advantage_distribution,
    by_position,
    compared,
    gradient_variance,
    num_vines,
    pays,
    signal_to_noise,
    temperature,
    value_accuracy,
)
from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.subject import find_checkpoints
from vineppo.config import apply_overrides, validate
from vineppo.machine import runtime
from vineppo.types import UserError

ANALYSES = {
    "value_accuracy": value_accuracy.analyze,
    "by_position": by_position.analyze,
    "num_vines": num_vines.analyze,
    "action_ranking": action_ranking.analyze,
    "signal_to_noise": signal_to_noise.analyze,
    "gradient_variance": gradient_variance.analyze,
    "temperature": temperature.analyze,
    "pays": pays.analyze,
}
OF_FILES = {
    "advantage_distribution": advantage_distribution.analyze,
    "efficiency": compared.efficiency,
    "generalisation": compared.generalisation,
    "kl": compared.kl,
}


def kinds_called(name: str) -> list[str]:
    kinds = [*ANALYSES, *OF_FILES]
    if name != "all" and name not in kinds:
        raise UserError(f"--kind {name}: must be all or one of {', '.join(kinds)}")
    return kinds if name == "all" else [name]


def analyze(kind: str, runs: Sequence[Path], overrides: Sequence[str], *, out: Path) -> Path:
    """Runs one analysis and returns its JSON file; beside it there is an SVG of every chart."""
    config = validate(AnalysisConfig, apply_overrides({}, overrides), source="analyze")
    if kind in OF_FILES:
        result = OF_FILES[kind](runs)
    else:
        result = ANALYSES[kind](find_checkpoints(runs, last_only=config.last_only), config)
    context = {
        "config": config.model_dump(mode="json"),
        "runs": [run.name for run in runs],
        "environment": runtime.describe_machine(runtime.pick_device("auto")),
    }
    return result.save(out, context)
