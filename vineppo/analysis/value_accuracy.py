"""How far predicted values are from reference values (paper, section 7, "Analyzing value estimation")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vineppo.analysis.measured import AnalysisConfig, Measured, main_estimators, measure
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, last_checkpoints, open_subject
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine.tables import Row
from vineppo.report.charts import Chart, bars, lines, points

WITHIN = (0.05, 0.1, 0.2)
PERFECT = "perfect"
NUM_BINS = 10

TITLE = "Accuracy of value estimates"
TEXT = (
    "Every state of one response per problem, valued by each estimator and by many vines of its own (the reference). "
    "within_x is the share of states whose prediction lies within x of the reference. The reference has an error of "
    "its own: 'perfect' is what an estimator that is always right would seem to score (for 0/1 rewards, taking the "
    "references for the truth). Intervals: 95 %, bootstrap over problems; in the charts Student's over seeds where "
    "there are several runs of a method."
)


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    rows: list[Row] = []
    calibration: list[Row] = []
    scatter: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            measured = measure(subject, config)
        rows += accuracy_rows(checkpoint, measured, seed=config.seed)
        calibration += calibration_rows(checkpoint, measured)
        rows += ceiling_rows(checkpoint, measured, config.num_reference)
        scatter += scatter_rows(checkpoint, measured, main_estimators(config))
    tables = {"accuracy": rows, "calibration": calibration}
    charts = {
        "training": training_chart(rows, main_estimators(config)),
        "last": last_chart(last_checkpoints(rows, checkpoints)),
        "scatter": scatter_chart(last_checkpoints(scatter, checkpoints)),
    }
    return Result("value_accuracy", TITLE, TEXT, tables, charts)


def training_chart(rows: Sequence[Row], shown: Sequence[str]) -> Chart:
    return plot(
        lines,
        "Share of states within 0.05 of the reference",
        [
            row | {"of": f"{row['method']}: {row['estimator']}"}
            for row in rows
            if row["measure"] == "within_0.05" and row["estimator"] in (*shown, PERFECT)
        ],
        by=("of", "iteration"),
        x="iteration",
        y="estimate",
        called="share of states",
        colour_by="of",
    )


def last_chart(rows: Sequence[Row]) -> Chart:
    return plot(
        bars,
        "Share of states within 0.05 of the reference, last checkpoints",
        [row for row in rows if row["measure"] == "within_0.05"],
        by=("estimator", "method"),
        x="estimator",
        y="estimate",
        called="share of states",
        colour_by="method",
    )


def scatter_chart(rows: Sequence[Row]) -> Chart:
    seeds = {row["method"]: row["seed"] for row in reversed(rows)}  # the first run of each method
    return points(
        "Predicted against reference value, last checkpoint of one run of each method",
        [row for row in rows if row["seed"] == seeds[row["method"]]],
        x="reference",
        y="prediction",
        by="of",
        diagonal=(0, 1),
    )


def accuracy_rows(checkpoint: RunCheckpoint, measured: Measured, *, seed: int) -> list[Row]:
    return [
        {**checkpoint.header, "estimator": name, "measure": measure_name, **found}
        for name, predicted in measured.predictions.items()
        for measure_name, found in accuracy(predicted, measured.reference, measured.problems, seed=seed).items()
    ]


def accuracy(
    predicted: np.ndarray, reference: np.ndarray, problems: Sequence[str], *, seed: int
) -> dict[str, dict[str, float | None]]:
    """Measure -> its estimate and interval, of [n] predictions."""
    errors = predicted - reference
    near = [np.abs(errors) <= x + 1e-9 for x in WITHIN]

    def statistic(weights: np.ndarray) -> np.ndarray:
        means = [np.abs(errors), errors**2, errors, *near]
        mae, mse, bias, *within = (weighted_mean(np.asarray(column, float), weights) for column in means)
        return np.array([mae, np.sqrt(mse), bias, correlation(predicted, reference, weights), *within])

    names = ("mae", "rmse", "bias", "correlation", *(f"within_{x:g}" for x in WITHIN))
    return dict(zip(names, bootstrap(statistic, problems, seed=seed), strict=True))


def correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Pearson's; nan where one of them does not vary."""
    a, b = a - weighted_mean(a, weights), b - weighted_mean(b, weights)
    scale = np.sqrt((weights * a * a).sum() * (weights * b * b).sum())
    return float((weights * a * b).sum() / scale) if scale > 1e-12 else float("nan")


def calibration_rows(checkpoint: RunCheckpoint, measured: Measured) -> list[Row]:
    """Mean reference value of the states that an estimator gives about the same value."""
    rows = []
    for name, predicted in measured.predictions.items():
        bins = np.clip((predicted * NUM_BINS).astype(int), 0, NUM_BINS - 1)
        for i in np.unique(bins):
            chosen = bins == i
            rows.append(
                {
                    **checkpoint.header,
                    "estimator": name,
                    "from": float(i / NUM_BINS),
                    "to": float((i + 1) / NUM_BINS),
                    "predicted": float(predicted[chosen].mean()),
                    "reference": float(measured.reference[chosen].mean()),
                    "states": int(chosen.sum()),
                }
            )
    return rows


def ceiling_rows(checkpoint: RunCheckpoint, measured: Measured, num_reference: int) -> list[Row]:
    """What an estimator that is always right would seem to score, as references of 0/1 rewards have errors."""
    p = measured.reference
    hits = np.arange(num_reference + 1)
    log_factorial = np.array([math.lgamma(n + 1) for n in range(num_reference + 1)])
    choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    inside = np.clip(p, 1e-12, 1 - 1e-12)[:, None]
    chances_nH = np.exp(choose + hits * np.log(inside) + (num_reference - hits) * np.log1p(-inside))
    errors_nH = np.abs(hits / num_reference - p[:, None])
    numbers = {"rmse": float(np.sqrt((p * (1 - p)).mean() / (num_reference - 1)))} | {
        f"within_{x:g}": float((chances_nH * (errors_nH <= x + 1e-9)).sum(axis=1).mean()) for x in WITHIN
    }
    return [
        {**checkpoint.header, "estimator": PERFECT, "measure": name, "estimate": number, "low": None, "high": None}
        for name, number in numbers.items()
    ]


def scatter_rows(checkpoint: RunCheckpoint, measured: Measured, shown: Sequence[str]) -> list[Row]:
    return [
        {
            **checkpoint.header,
            "of": f"{checkpoint.recipe.name}: {name}",
            "reference": round(float(true), 4),
            "prediction": round(float(value), 4),
        }
        for name, predicted in measured.predictions.items()
        if name in shown
        for true, value in zip(measured.reference, predicted, strict=True)
    ]
