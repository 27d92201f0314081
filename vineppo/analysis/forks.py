"""What the best baseline would leave of the noise: at a token, from the values of the actions that might be taken.

At a state with actions a, probabilities pi, values Q and score energies e_a = 1 - 2 pi_a + sum_b pi_b^2 one token of a
response adds to the gradient's mean square, when credit is exact,

    with V as baseline         sum_a pi_a e_a (Q_a - V)^2                      V = sum_a pi_a Q_a
    with the best baseline     sum_a pi_a e_a (Q_a - b)^2                      b = sum_a pi_a e_a Q_a / sum_a pi_a e_a
    with all actions at once   sum_a pi_a^2 (Q_a - V)^2                        |E[A grad log pi]|^2, no draw is left

All are quadratic forms Q'MQ. With measured Q^ of known variance, Q^'MQ^ - trace(M var) has the right mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BASELINES = ("V", "best", "all actions")


@dataclass(frozen=True)
class Fork:
    """Some actions of one state, which are tried. What the others are worth is taken to be the mean of these."""

    probabilities: np.ndarray  # [A] of those tried, as sampled
    square_sum: float  # sum of the squares of all probabilities
    values: np.ndarray  # [A] Q^
    noise: np.ndarray  # [A] variance of Q^, without bias


def squares(fork: Fork) -> np.ndarray:  # [3], in the order of BASELINES
    """Without bias, so one of them may be below 0."""
    return np.array(
        [fork.values @ form_AA @ fork.values - np.diag(form_AA) @ fork.noise for form_AA in quadratic_forms(fork)]
    )


def quadratic_forms(fork: Fork) -> list[np.ndarray]:  # [3][A, A]
    pi = fork.probabilities
    weights = pi * (1 - 2 * pi + fork.square_sum)
    minus_mean_AA = np.eye(len(pi)) - pi / pi.sum()
    centred = [minus_mean_AA.T @ np.diag(diagonal) @ minus_mean_AA for diagonal in (weights, pi**2)]
    best_AA = np.diag(weights) - np.outer(weights, weights) / (weights.sum() or 1.0)  # 0 where one action is certain
    return [centred[0], best_AA, centred[1]]
