"""Laws of numbers that records check when they are made. Each raises ValueError."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def check_boundaries(boundaries: Sequence[int], num_tokens: int) -> None:
    """Segments must partition the response: 0 = b_0 < b_1 < ... < b_S = L with L >= 1."""
    if len(boundaries) < 2 or boundaries[0] != 0 or boundaries[-1] != num_tokens:
        raise ValueError(f"boundaries must run from 0 to {num_tokens}, got {tuple(boundaries)}")
    if any(map(operator.ge, boundaries, boundaries[1:])):
        raise ValueError(f"boundaries must be strictly increasing, got {tuple(boundaries)}")


def check_alternatives(alternatives: Sequence[Sequence[tuple[int, float]]], num_tokens: int) -> None:
    """One list per token, of finite log-probabilities that do not rise."""
    if len(alternatives) != num_tokens:
        raise ValueError(f"alternatives for {len(alternatives)} of {num_tokens} tokens")
    for i, pairs in enumerate(alternatives):
        logprobs = [logprob for _, logprob in pairs]
        check_finite(f"logprobs of alternatives[{i}]", logprobs)
        if logprobs != sorted(logprobs, reverse=True):
            raise ValueError(f"alternatives[{i}] must be sorted by log-probability, likeliest first, got {pairs}")


def check_finite(name: str, numbers: Sequence[float]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite, got {tuple(numbers)}")


def plain_numbers(column: Sequence[float]) -> tuple[float, ...]:
    """Without numpy's and torch's scalars, which files of JSON cannot hold."""
    return tuple(column) if set(map(type, column)) <= {int, float} else tuple(map(float, column))


def check_names(named: Iterable[Any]) -> None:
    """Short names, which are parts of metric keys."""
    for name in named:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
            raise ValueError(f"a name must be 1 to 60 of A-Z a-z 0-9 _ -, got {name!r}")


def plain_metrics(metrics: Mapping[str, Any], *, finite: bool = True, kind: str = "metric") -> dict[str, float]:
    """Raises ValueError where one is no number; numpy's and torch's scalars become Python's."""
    if not isinstance(metrics, Mapping):
        raise ValueError(f"{kind}s must be a dict of numbers, got {type(metrics).__name__}")
    plain: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            number = value if isinstance(value, int | float) else float(value)
        except (TypeError, ValueError, RuntimeError):  # the last is torch's, for a tensor of several numbers
            raise ValueError(f"{kind} {name!r} must be a number, got a {type(value).__name__}") from None
        if finite and not math.isfinite(number):
            raise ValueError(f"{kind} {name!r} must be a finite number, got {number}")
        plain[name] = number
    return plain
