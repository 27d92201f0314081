"""From values at boundaries to advantages of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def differences(values: Sequence[float]) -> tuple[float, ...]:
    """[S+1] values -> [S] segment advantages, A_j = V(s_{j+1}) - V(s_j)."""
    return tuple(after - before for before, after in pairwise(values))


def spread(per_segment: Sequence[float], boundaries: Sequence[int]) -> tuple[float, ...]:
    """[S] -> [L]: every token of a segment gets its segment's number."""
    lengths = [end - start for start, end in pairwise(boundaries)]
    return tuple(number for number, length in zip(per_segment, lengths, strict=True) for _ in range(length))
