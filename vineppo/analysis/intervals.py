"""Intervals over problems: states of one problem stand or fall together, so problems are what is drawn again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

NUM_RESAMPLES = 1000

Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap(statistic: Statistic, clusters: Sequence[Hashable], *, seed: int) -> list[dict[str, float | None]]:
    """Estimate and 95 % percentile interval of every number that `statistic` gives.

    `statistic` maps weights [n], how often each row counts, to numbers [m]; `clusters` [n] names the problem of each
    row. A number that some resample leaves undefined (nan) is taken over the resamples that do not.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    cluster_of = np.array([names[name] for name in clusters])
    estimate = statistic(np.ones(len(clusters)))
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_RESAMPLES)
    resampled = np.array([statistic(row[cluster_of].astype(float)) for row in counts])
    found = []
    for number, column in zip(estimate, resampled.T, strict=True):
        column = column[np.isfinite(column)]
        low, high = np.percentile(column, [2.5, 97.5]) if len(column) and len(names) > 1 else (np.nan, np.nan)
        found.append({"estimate": finite(number), "low": finite(low), "high": finite(high)})
    return found


def finite(number: float) -> float | None:
    """JSON has no nan."""
    return float(number) if np.isfinite(number) else None


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float("nan")
