"""From values at boundaries, or one number for a response, to advantages of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, pstdev

from vineppo.types import Credit, Group, equal_rewards


def differences(values: Sequence[float]) -> tuple[float, ...]:
    """[S+1] values -> [S] segment advantages, A_j = V(s_{j+1}) - V(s_j)."""
    return tuple(after - before for before, after in pairwise(values))


def spread(per_segment: Sequence[float], boundaries: Sequence[int]) -> tuple[float, ...]:
    """[S] -> [L]: every token of a segment gets its segment's number."""
    lengths = [end - start for start, end in pairwise(boundaries)]
    return tuple(number for number, length in zip(per_segment, lengths, strict=True) for _ in range(length))


def group_credits(
    groups: Sequence[Group], advantages_of: Callable[[Sequence[float]], list[float]]
) -> list[list[Credit]]:  # [P][G]
    """`advantages_of` maps the rewards of siblings [G] to their advantages [G], which all their tokens get.

    Siblings with equal rewards have advantage 0 exactly.
    """
    return [
        [
            Credit(rollout.boundaries, (advantage,) * len(rollout.token_ids))
            for rollout, advantage in zip(
                group,
                [0.0] * len(group) if equal_rewards(group) else advantages_of([r.reward for r in group]),
                strict=True,
            )
        ]
        for group in groups
    ]


def group_metrics(credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    advantages = [credit.advantages[0] for of_group in credits for credit in of_group]
    return {
        "credit/advantage_std": pstdev(advantages),
        "credit/zero_frac": fmean(advantage == 0 for advantage in advantages),
    }
