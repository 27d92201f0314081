"""From values at boundaries to advantages of tokens, and what is reported of both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev


def differences(values: Sequence[float]) -> tuple[float, ...]:
    """[S+1] values -> [S] segment advantages, A_j = V(s_{j+1}) - V(s_j)."""
    return tuple(after - before for before, after in pairwise(values))


def spread(per_segment: Sequence[float], boundaries: Sequence[int]) -> tuple[float, ...]:
    """[S] -> [L]: every token of a segment gets its segment's number."""
    lengths = [end - start for start, end in pairwise(boundaries)]
    return tuple(number for number, length in zip(per_segment, lengths, strict=True) for _ in range(length))


def advantage_metrics(advantages: Sequence[float]) -> dict[str, float]:
    """Before whitening, each as often as its estimator tells it from others."""
    return {
        "credit/advantage_std": pstdev(advantages),
        "credit/zero_frac": fmean(advantage == 0 for advantage in advantages),
    }


def value_metrics(values: Sequence[float], initial_values: Sequence[float]) -> dict[str, float]:
    """Of all states of an iteration, and of its prompts."""
    return {
        "credit/value_mean": fmean(values),
        "credit/value_std": pstdev(values),
        "credit/initial_value_mean": fmean(initial_values),
    }
