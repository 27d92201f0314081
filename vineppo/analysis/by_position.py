"""Errors of values along the chain: the paper finds critics worse towards the end, and Monte-Carlo better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vineppo.analysis.measured import AnalysisConfig, Measured, main_estimators, measure
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, last_checkpoints, open_subject
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine.tables import Row
from vineppo.report.charts import lines

NUM_BINS = 5

TITLE = "Error of values by position"
TEXT = (
    "Mean absolute error of each estimator against the reference, by how far along its response a state is: 0 is the "
    "prompt, 1 the end, in fifths; a position stands for the middle of its fifth. Intervals: 95 %, bootstrap over "
    "problems, or over seeds in the chart where there are several runs of a method."
)


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    rows: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            rows += position_rows(checkpoint, measure(subject, config), seed=config.seed)
    shown = [
        row | {"of": f"{row['method']}: {row['estimator']}"}
        for row in last_checkpoints(rows, checkpoints)
        if row["estimator"] in main_estimators(config)
    ]
    chart = plot(
        lines,
        "Error along the response, last checkpoints",
        shown,
        by=("of", "position"),
        x="position",
        y="mae",
        colour_by="of",
    )
    return Result("by_position", TITLE, TEXT, {"error": rows}, {"error": chart})


def position_rows(checkpoint: RunCheckpoint, measured: Measured, *, seed: int) -> list[Row]:
    bins = np.minimum((measured.positions * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = []
    for name, predicted in measured.predictions.items():
        errors = np.abs(predicted - measured.reference)

        def statistic(weights: np.ndarray, errors: np.ndarray = errors) -> np.ndarray:
            return np.array([weighted_mean(errors[bins == i], weights[bins == i]) for i in range(NUM_BINS)])

        for i, found in enumerate(bootstrap(statistic, measured.problems, seed=seed)):
            rows.append(
                {
                    **checkpoint.header,
                    "estimator": name,
                    "position": (i + 0.5) / NUM_BINS,
                    "states": int((bins == i).sum()),
                    "mae": found["estimate"],
                    "low": found["low"],
                    "high": found["high"],
                }
            )
    return rows
