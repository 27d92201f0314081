"""What advantages a run's own rollouts were given: how many are zero, how large they are, and where along the chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vineppo.analysis.result import Result, plot
from vineppo.machine.tables import Row
from vineppo.methods import load_recipe
from vineppo.report.charts import bars, lines
from vineppo.rollout_files import rollout_files, rollouts_of
from vineppo.types import UserError

NUM_BINS = 20
NUM_POSITIONS = 5

TITLE = "Distribution of advantages"
TEXT = (
    "Segment advantages as training used them before whitening, from the rollouts that the runs kept. zero_share: "
    "exactly 0. position: how far along its response a segment is, in fifths. One row per kept iteration; the charts "
    "are of each method's last one."
)


def analyze(runs: Sequence[Path]) -> Result:
    rows: list[Row] = []
    histogram: list[Row] = []
    positions: list[Row] = []
    for run in runs:
        files = rollout_files(run / "rollouts")
        if not files:
            raise UserError(f"{run}: no rollouts were kept; train with train.save_rollouts_every = 1")
        recipe = load_recipe(run / "recipe.toml")
        for iteration, file in files.items():
            header = {"method": recipe.name, "seed": recipe.seed, "iteration": iteration}
            advantages, along = read_advantages(file)
            rows.append(header | summary(advantages))
            if iteration == max(files):
                histogram += [header | row for row in histogram_rows(advantages)]
                positions += [header | row for row in position_rows(advantages, along)]
    charts = {
        "histogram": plot(
            bars,
            "Segment advantages, last kept iteration",
            [row | {"low": None, "high": None} for row in histogram],
            by=("middle", "method"),
            x="middle",
            y="share",
            colour_by="method",
        ),
        "position": plot(
            lines,
            "Mean size of advantages along the response",
            positions,
            by=("method", "position"),
            x="position",
            y="mean_size",
            colour_by="method",
        ),
    }
    tables = {"summary": rows, "histogram": histogram, "position": positions}
    return Result("advantage_distribution", TITLE, TEXT, tables, charts)


def read_advantages(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Segment advantages [n] and relative positions j / S, [n]."""
    advantages, along = [], []
    for rollout in rollouts_of(file, str(file)):
        own = rollout["advantages"]
        advantages += own
        along += [j / len(own) for j in range(len(own))]
    if not advantages:
        raise UserError(f"{file}: there are no advantages in it")
    return np.array(advantages), np.array(along)


def summary(advantages: np.ndarray) -> Row:
    return {
        "segments": len(advantages),
        "mean": float(advantages.mean()),
        "std": float(advantages.std()),
        "zero_share": float((advantages == 0).mean()),
        "positive_share": float((advantages > 0).mean()),
    }


def histogram_rows(advantages: np.ndarray) -> list[Row]:
    """Shares of segments in bins of a tenth around -1 .. 1; what lies beyond (GRPO divides) counts in the outermost."""
    edges = np.linspace(-1 - 1 / NUM_BINS, 1 + 1 / NUM_BINS, NUM_BINS + 2)
    counts, _ = np.histogram(np.clip(advantages, -1, 1), edges)
    middles = (edges[1:] + edges[:-1]) / 2
    return [
        {"middle": f"{middle:.1f}", "share": float(count / len(advantages))}
        for middle, count in zip(middles, counts, strict=True)
    ]


def position_rows(advantages: np.ndarray, along: np.ndarray) -> list[Row]:
    bins = np.minimum((along * NUM_POSITIONS).astype(int), NUM_POSITIONS - 1)
    return [
        {"position": float(i + 0.5) / NUM_POSITIONS, "mean_size": float(np.abs(advantages[bins == i]).mean())}
        for i in np.unique(bins)
    ]
