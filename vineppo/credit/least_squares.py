"""Constants fitted by weighted least squares, on other groups and earlier iterations alone.

A multiple of a number that is known before a token is drawn takes noise off the gradient and leaves its mean alone, as
long as the constant knows nothing of that draw. What a group showed is therefore kept as sums of products of columns:
they add up over groups, fade over iterations, and are all that least squares need.
C columns: the target, and the C - 1 numbers whose multiples shall come near it. N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DECAY = 0.9
"""Of what earlier iterations showed, per iteration: the policy moves on."""
PRIOR_ROLLOUTS = 4
"""Rollouts whose worth of evidence pulls the constants towards 0."""


@dataclass(frozen=True)
class Products:
    products_CC: np.ndarray
    num_rollouts: float

    @classmethod
    def none(cls, num_constants: int) -> Products:
        return cls(np.zeros((1 + num_constants, 1 + num_constants)), 0.0)

    @classmethod
    def of(cls, columns_CN: np.ndarray, weights_N: np.ndarray, num_rollouts: float) -> Products:
        return cls((columns_CN * weights_N) @ columns_CN.T, num_rollouts)

    def __add__(self, other: Products) -> Products:
        return Products(self.products_CC + other.products_CC, self.num_rollouts + other.num_rollouts)

    def decayed(self) -> Products:
        return Products(DECAY * self.products_CC, DECAY * self.num_rollouts)

    def fit(self, used: Sequence[int] | None = None) -> np.ndarray:  # [C-1]
        """The constants, ridged; 0 for those that are not among `used`, and those whose column has shown nothing."""
        num_constants = len(self.products_CC) - 1
        shown = [k for k in (range(num_constants) if used is None else used) if self.products_CC[k + 1, k + 1] > 0]
        constants = np.zeros(num_constants)
        if not shown:
            return constants
        rows = np.array(shown) + 1
        normal = self.products_CC[np.ix_(rows, rows)].copy()
        normal[np.diag_indices(len(shown))] *= 1 + PRIOR_ROLLOUTS / self.num_rollouts
        constants[shown] = np.linalg.lstsq(normal, self.products_CC[rows, 0], rcond=None)[0]
        return constants

    def square_left(self, constants: np.ndarray) -> float:
        """The target's weighted square after the multiples were taken off, over that before; 1 where it was 0."""
        factors_C = np.array([1.0, *-constants])
        before, after = self.products_CC[0, 0], factors_C @ self.products_CC @ factors_C
        return float(after / before) if before > 0 else 1.0

    def as_json(self) -> dict[str, Any]:
        return {"products": self.products_CC.tolist(), "num_rollouts": self.num_rollouts}

    def like(self, saved: Mapping[str, Any]) -> Products:
        """What `as_json` gave. Raises KeyError, TypeError or ValueError where it is none with as many columns."""
        products_CC = np.array(saved["products"], dtype=np.float64).reshape(self.products_CC.shape)
        num_rollouts = float(saved["num_rollouts"])
        is_sum = np.isfinite(products_CC).all() and 0 <= num_rollouts < np.inf
        if not is_sum or (products_CC.any() and not num_rollouts):
            raise ValueError("sums that no rollouts add up to")
        return Products(products_CC, num_rollouts)


def of_others(own: Sequence[Products], before: Products) -> list[Products]:
    """For each group `before` and what all others showed, without its own in the sum for a moment: taking it off again
    would leave rounding of it."""
    forward, backward = [before], [Products(0 * before.products_CC, 0.0)]
    for ahead, behind in zip(own[:-1], reversed(own[1:]), strict=True):
        forward.append(forward[-1] + ahead)
        backward.append(behind + backward[-1])
    return [one + other for one, other in zip(forward, reversed(backward), strict=True)]
