"""A critic as control variate: what it says takes noise off the gradient and leaves its mean alone, whatever it says.

q(s, a) is the critic's guess at the reward after token a, frozen before the responses are sampled that it judges. It is
asked about the likeliest tokens T(s) with their probabilities pi; all others count as average. Along a response:

    v(s)   = sum_T pi q / sum_T pi                  the critic's value of the state
    luck_t = q(s_t, y_t) - v(s_t)                   mean 0 given s_t for every q (AIVAT: Burch et al. 2018)
    b*(s)  = sum_a w q / sum_a w                    the baseline of least variance for one state, where
    w_a    = pi_a |grad log pi(a)|^2                the gradient is with respect to logits,
           = pi_a (1 - 2 pi_a + sum_b pi_b^2)       and all tokens outside of T count as one

A token's advantage is its reward against its siblings' (RLOO) less five parts, each times a constant. Part 1 has mean 0
given the token and what came before it; the others do not depend on the token. So every constant is unbiased:

    A_t = R - rbar - sum_k trust_k part_k,    rbar the mean reward of the siblings
    later luck    sum_{u > t} luck_u                own luck that came after the token
    sibling luck  - mean over siblings of sum_u luck_u
    prompt        v(s_0) - rbar
    progress      v(s_t) - v(s_0)
    best          b*(s_t) - v(s_t)

The constants are fitted by weighted least squares of A on other groups (least_squares.py), so that they go to 0 where
the critic explains nothing. With the weights |grad log pi(y_t)|^2 the mean of A_t^2 is the gradient's variance but for
what tokens share.
Shapes: L response tokens, M likeliest tokens, C columns (the reward part and the five).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vineppo.alternatives import alternatives_table, sampled_logprobs
from vineppo.credit.advantages import leave_one_out
from vineppo.credit.least_squares import Products
from vineppo.types import Group, Rollout

PARTS = ("later_luck", "sibling_luck", "prompt", "progress", "best")
MAX_TRUST = 1.25
"""A critic that has just become sharper would be trusted for too much."""


@dataclass(frozen=True)
class Reading:
    """What a critic says along one response. Tokens that the environment wrote have no luck and no weight."""

    values_L: np.ndarray  # v(s_t)
    best_L: np.ndarray  # b*(s_t)
    luck_L: np.ndarray
    weights_L: np.ndarray  # |grad log pi(y_t | s_t)|^2
    top_probs_L: np.ndarray  # of the likeliest token


def read(rollout: Rollout, q_LM: np.ndarray) -> Reading:
    """`q_LM` is of the rollout's alternatives, in their order."""
    ids_LM, logprobs_LM = alternatives_table(rollout.completion)
    probs_LM = np.exp(logprobs_LM)
    tokens_L = np.array(rollout.token_ids)
    mask_L = np.array(rollout.action_mask or [True] * len(tokens_L)) & (probs_LM[:, 0] > 0)
    known_L = np.where(mask_L, probs_LM.sum(axis=1), 1.0)
    rest_L = np.maximum(1 - known_L, 0.0)
    values_L = (probs_LM * q_LM).sum(axis=1) / known_L
    squares_L = (probs_LM**2).sum(axis=1) + rest_L**2
    energy_LM = probs_LM * (1 - 2 * probs_LM + squares_L[:, None])
    rest_energy_L = rest_L * (1 - 2 * rest_L + squares_L)
    energy_L = energy_LM.sum(axis=1) + rest_energy_L
    pull_L = (energy_LM * (q_LM - values_L[:, None])).sum(axis=1)
    best_L = values_L + np.divide(pull_L, energy_L, out=np.zeros_like(pull_L), where=energy_L > 1e-12)
    drawn_LM = (ids_LM == tokens_L[:, None]) & (probs_LM > 0)
    prob_L = np.exp(sampled_logprobs(rollout.completion, ids_LM, logprobs_LM))
    return Reading(
        values_L,
        best_L,
        luck_L=mask_L * (drawn_LM * (q_LM - values_L[:, None])).sum(axis=1),
        weights_L=mask_L * np.maximum(1 - 2 * prob_L + squares_L, 0.0),
        top_probs_L=np.where(mask_L, probs_LM[:, 0], 1.0),
    )


def columns_of(rewards: Sequence[float], readings: Sequence[Reading]) -> list[np.ndarray]:  # [G][C, L]
    """For each sibling the reward against the others', then the five parts."""
    total_lucks = [float(reading.luck_L.sum()) for reading in readings]
    differences, luck_differences = leave_one_out(rewards), leave_one_out(total_lucks)
    columns = []
    for i, reading in enumerate(readings):
        later_L = total_lucks[i] - np.cumsum(reading.luck_L)
        sibling_luck = total_lucks[i] - luck_differences[i]
        first = reading.values_L[0]
        per_response = np.ones_like(later_L)
        columns.append(
            np.stack(
                [
                    differences[i] * per_response,
                    later_L,
                    -sibling_luck * per_response,
                    (first - (rewards[i] - differences[i])) * per_response,
                    reading.values_L - first,
                    reading.best_L - reading.values_L,
                ]
            )
        )
    return columns


def fit_trust(squares: Products, parts: Sequence[str] = PARTS) -> np.ndarray:  # [C-1]
    """The constants of the parts; 0 for those that are left out or have shown nothing."""
    return np.clip(squares.fit([k for k, part in enumerate(PARTS) if part in parts]), 0.0, MAX_TRUST)


@dataclass(frozen=True)
class JudgedGroup:
    """Siblings, what the critic says along each, and the columns that its advantages are made of."""

    group: Group
    readings: Sequence[Reading]  # [G]

    @cached_property
    def columns(self) -> list[np.ndarray]:  # [G][C, L]
        return columns_of([rollout.reward for rollout in self.group], self.readings)

    @cached_property
    def squares(self) -> Products:
        pairs = zip(self.columns, self.readings, strict=True)
        return sum((Products.of(c_CL, r.weights_L, 1) for c_CL, r in pairs), Products.none(len(PARTS)))

    def advantages(self, trust: np.ndarray) -> list[np.ndarray]:  # [G][L]
        return [c_CL[0] - trust @ c_CL[1:] for c_CL in self.columns]
