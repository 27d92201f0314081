"""95 % intervals: Student's over seeds, Wilson's over problems, and for any other statistic the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from statistics import fmean, stdev, variance
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

NUM_RESAMPLES = 1000


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and Student's 95 % interval; of fewer than two values there is none."""
    n = len(values)
    if n < 2:
        return {"mean": values[0] if n else None, "ci95": None, "n": n}
    mean, half = fmean(values), student_95(n - 1) * stdev(values) / math.sqrt(n)
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": n}


def score_ci95(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the mean of numbers, one per problem: Wilson's where all of them are in [0, 1], else Student's.

    Of a single problem outside [0, 1] there is none.
    """
    if all(0 <= value <= 1 for value in values):
        return proportion_ci95(values)
    ci95 = interval(values)["ci95"]
    return ci95 and tuple(ci95)


def proportion_ci95(values: Sequence[float]) -> tuple[float, float]:
    """Wilson's interval (JASA 1927) for a proportion over as many independent answers as these problems are worth.

    That many of variance p(1 - p) give a mean as noisy as theirs. The noise is estimated from them, so the quantile is
    Student's. Where all values are equal there is nothing to estimate it from, and each problem is worth one answer.
    """
    num_problems, mean = len(values), fmean(values)
    spread = variance(values) if num_problems > 1 else 0.0
    worth = num_problems * mean * (1 - mean) / spread if spread else num_problems
    return wilson(mean, worth, student_95(max(1, num_problems - 1)))


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Both ends q satisfy |p - q| = z sqrt(q (1 - q) / n)."""
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


@lru_cache
def student_95(df: int) -> float:
    """The t that a Student variable of `df` degrees of freedom exceeds, up or down, in 5 % of the draws."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # then the ends are neighbouring floats
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, df) < 0.95 else (low, middle)
    return math.sqrt(df) * math.tan(low)


def student_within(theta: float, df: int) -> float:
    """P(|t| < sqrt(df) tan(theta)), a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = df % 2
    power = math.cos(theta) if odd else 1.0
    terms = []
    for k in range(1 + odd, df, 2):
        terms.append(power)
        power *= math.cos(theta) ** 2 * k / (k + 1)
    total = math.sin(theta) * math.fsum(terms)
    return 2 / math.pi * (theta + total) if odd else total


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: Sequence[Hashable], *, seed: int
) -> list[dict[str, float | None]]:
    """Estimate and 95 % percentile interval of every number that `statistic` gives.

    `statistic` maps weights [n], how often each row counts, to numbers [m]. `clusters` [n] names the problem of each
    row: states of one problem stand or fall together, so problems are what is drawn again. A number that some resample
    leaves undefined (nan) is taken over the resamples that do not.
    """
    import numpy as np  # here, as recipes are read without it

    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    cluster_of = np.array([names[name] for name in clusters])
    estimate = statistic(np.ones(len(clusters)))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=NUM_RESAMPLES)
    resampled = np.array([statistic(row[cluster_of].astype(float)) for row in counts])
    found = []
    for number, column in zip(estimate, resampled.T, strict=True):
        column = column[np.isfinite(column)]
        low, high = np.percentile(column, [2.5, 97.5]) if len(column) and len(names) > 1 else (np.nan, np.nan)
        found.append({"estimate": finite(number), "low": finite(low), "high": finite(high)})
    return found


def finite(number: float) -> float | None:
    """JSON has no nan."""
    return float(number) if math.isfinite(number) else None


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float("nan")
