"""What K buys: error of values and noise of advantages against tokens (paper, section 7, "Impact of K")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vineppo.analysis.measured import AnalysisConfig, Measured, measure
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, last_checkpoints, open_subject
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine.tables import Row
from vineppo.report.charts import lines

TITLE = "What the number of vines buys"
TEXT = (
    "value_rmse: root mean square distance of a K-vine value from the reference. theory is what p(1 - p)/K + p(1 - "
    "p)/N predicts for 0/1 rewards, N being the reference's vines. advantage_noise: root mean square distance of a "
    "segment's advantage from the one by reference values. Whether more vines train better policies is another "
    "question: compare runs that differ in credit.num_vines."
)


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    rows: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            rows += rows_of(checkpoint, measure(subject, config), config)
    chart = plot(
        lines,
        "Error of values by number of vines, last checkpoints",
        [
            row | {"low": row["value_rmse_low"], "high": row["value_rmse_high"]}
            for row in last_checkpoints(rows, checkpoints)
        ],
        by=("method", "vines"),
        x="vines",
        y="value_rmse",
        colour_by="method",
        log_x=True,
    )
    return Result("num_vines", TITLE, TEXT, {"vines": rows}, {"error": chart})


def rows_of(checkpoint: RunCheckpoint, measured: Measured, config: AnalysisConfig) -> list[Row]:
    p = measured.reference
    rows = []
    for k in config.vines:
        predicted = measured.predictions[f"VinePPO K={k}"]
        squares = (predicted - p) ** 2
        noise = (advantages(predicted, measured) - advantages(p, measured)) ** 2

        def statistic(weights: np.ndarray, squares: np.ndarray = squares, noise: np.ndarray = noise) -> np.ndarray:
            return np.sqrt([weighted_mean(squares, weights), weighted_mean(noise, weights)])

        values, credits = bootstrap(statistic, measured.problems, seed=config.seed)
        rows.append(
            {
                **checkpoint.header,
                "vines": k,
                "value_rmse": values["estimate"],
                "value_rmse_low": values["low"],
                "value_rmse_high": values["high"],
                "theory": theory(p, k, config.num_reference),
                "advantage_noise": credits["estimate"],
                "advantage_noise_low": credits["low"],
                "advantage_noise_high": credits["high"],
            }
        )
    return rows


def theory(p: np.ndarray, k: int, num_reference: int) -> float:
    """p (1 - p) is taken of the reference values, whose own noise makes it (N - 1)/N of the truth on average."""
    spread = (p * (1 - p)).mean() * num_reference / max(num_reference - 1, 1)
    return float(np.sqrt(spread * (1 / k + 1 / num_reference)))


def advantages(values: np.ndarray, measured: Measured) -> np.ndarray:
    """V(s_{j+1}) - V(s_j) for every state; after the last one comes the response's reward."""
    following = np.append(values[1:], 0.0)
    ends = np.append(measured.rollouts[1:] != measured.rollouts[:-1], True)
    return np.where(ends, measured.rewards, following) - values
