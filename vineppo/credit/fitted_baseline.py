"""Constants that stretch, shift and mix baselines so that the gradient varies least, fitted where they may be.

The mean return V(s) is a baseline that leaves the gradient's mean alone, and so is any multiple of it. The best one of
a state is sum_a w_a Q(s, a) / sum_a w_a with w_a = pi(a) |grad log pi(a)|^2. It is far below V(s) where the policy is
sure and its rare mistakes cost everything. It needs Q of tokens that were not drawn; the best linear guess from what is
known is a weighted least-squares fit of an edge's return Q to numbers that are fixed before the edge is drawn,

    minimise sum_e (w_e |u_e|)^2 (Q_e - b_e - k_1 b_e - k_2 (c_e - b_e) - k_3)^2,    |u_e|^2 ~ sum_t (1 - pi(y_t))^2,

with b_e its baseline and c_e the mean return elsewhere. The constants for a group come from other groups and earlier
iterations alone: fitted on a group's own returns they would know what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vineppo.types import Rollout

NUM_CONSTANTS = 3
DECAY = 0.9
"""Of what earlier iterations showed, per iteration: the policy moves on."""
PRIOR_ROLLOUTS = 4
"""Rollouts whose worth of evidence pulls the constants to 0."""


@dataclass(frozen=True)
class Evidence:
    """Weighted sums of products of the columns Q - b, b, c - b, 1: all that least squares need."""

    products_CC: np.ndarray
    num_rollouts: float

    @classmethod
    def none(cls) -> Evidence:
        return cls(np.zeros((1 + NUM_CONSTANTS, 1 + NUM_CONSTANTS)), 0.0)

    @classmethod
    def of(cls, columns_EC: np.ndarray, weights_E: np.ndarray, num_rollouts: int) -> Evidence:
        return cls((columns_EC * weights_E[:, None]).T @ columns_EC, num_rollouts)

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.products_CC + other.products_CC, self.num_rollouts + other.num_rollouts)

    def decayed(self) -> Evidence:
        return Evidence(DECAY * self.products_CC, DECAY * self.num_rollouts)

    def fit(self) -> np.ndarray:  # [C-1]
        """The constants of least squares, ridged; 0 where nothing has been seen."""
        if not self.num_rollouts:
            return np.zeros(NUM_CONSTANTS)
        normal = self.products_CC[1:, 1:].copy()
        normal[np.diag_indices(NUM_CONSTANTS)] *= 1 + PRIOR_ROLLOUTS / self.num_rollouts
        return np.linalg.lstsq(normal, self.products_CC[1:, 0], rcond=None)[0]


def of_others(evidence: Sequence[Evidence], before: Evidence) -> list[Evidence]:
    """For each group `before`, and what all others showed; without its own in the sum, which would leave rounding."""
    return [sum((other for other in evidence if other is not own), before) for own in evidence]


def squared_score(rollout: Rollout, start: int, end: int) -> float:
    """About |sum_t grad log pi(y_t)|^2 with respect to logits, up to a factor, of tokens start .. end - 1."""
    return math.fsum((1 - math.exp(logprob)) ** 2 for logprob in rollout.completion.logprobs[start:end])
