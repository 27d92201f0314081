"""How noisy a policy gradient will be, from responses whose states were measured. Numbers in, numbers out.

The gradient of one response is sum_j A_j u_j, with u_j the sum of grad log pi over segment j. Scores of different
tokens are nearly orthogonal, so its mean square is E[sum_j A_j^2 e_j], with e_j = |u_j|^2 the segment's *score energy*.
Every estimator here is linear: A_j = sum_i w_ji V_i over the values of the states s_0 .. s_{S-1} and V_S = R. Measured
values V^_i have mean V_i and a variance that is known without bias, so squares are known without bias too:

    (sum_i w_ji V_i)^2  =  E[(sum_i w_ji V^_i)^2 - sum_i w_ji^2 var(V^_i)]

To this comes the noise that the values would have in training, which depends on how many vines they are means of.
Shapes: S segments, N = S + 1 values, n responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Chain:
    """One response with the measured values of its states."""

    problem: str
    reward: float
    num_tokens: int
    energies: np.ndarray  # [S] e_j
    expected_energies: np.ndarray  # [S] the same by the mean over each token's draw, in the state before it
    values: np.ndarray  # [S] V^ of the states
    spreads: np.ndarray  # [S] sigma^2, the variance of one reward from there, without bias
    counts: np.ndarray  # [S] rewards that each value is the mean of, independent of those of other states
    costs: np.ndarray  # [S] tokens of a vine
    sharers: np.ndarray  # [S] responses of the group that run through the state, this one included
    logprobs: np.ndarray  # [S] of the segments' tokens

    @property
    def num_segments(self) -> int:
        return len(self.energies)

    @cached_property
    def all_values(self) -> np.ndarray:  # [N]
        return np.append(self.values, self.reward)

    @cached_property
    def noise(self) -> np.ndarray:  # [N]
        """Variance of `all_values`."""
        return np.append(self.spreads / self.counts, 0.0)

    @cached_property
    def passing(self) -> np.ndarray:  # [S, S]
        """[i, j]: the probability that what is sampled from s_i runs through s_j; 0 for j < i."""
        reach_S = np.append(0.0, np.cumsum(self.logprobs[:-1]))
        return np.triu(np.exp(np.minimum(reach_S[None, :] - reach_S[:, None], 0.0)))


def squared_credit(chain: Chain, weights_SN: np.ndarray) -> np.ndarray:  # [S]
    """A_j^2 of the exact values, without bias."""
    return (weights_SN @ chain.all_values) ** 2 - weights_SN**2 @ chain.noise


@dataclass(frozen=True)
class Noise:
    """What errors of values, of one covariance, add to the mean of products of weighted values: [S] each.

    Siblings that share a state share the error of its value. As a baseline it meets segments that were drawn apart. As
    an end value it meets the same segment in all of them, so it counts once for each of the siblings.
    """

    before: np.ndarray  # of two values at or before the segment's start
    after: np.ndarray  # of two values behind it
    both: np.ndarray  # of one and the other


def make_noise(chain: Chain, weights_SN: np.ndarray, covariance_SS: np.ndarray) -> Noise:
    after_SS = weights_SN[:, :-1] * np.triu(np.ones_like(covariance_SS), 1)  # [j, i]: i > j
    before_SS = weights_SN[:, :-1] - after_SS
    sharers_SS = np.maximum(chain.sharers[:, None], chain.sharers[None, :])  # of the earlier of two states
    return Noise(
        before=np.einsum("ji,ik,jk->j", before_SS, covariance_SS, before_SS),
        after=np.einsum("ji,ik,jk->j", after_SS, covariance_SS * sharers_SS, after_SS),
        both=np.einsum("ji,ik,jk->j", before_SS, covariance_SS, after_SS),
    )


def mean_square(chain: Chain, weights_SN: np.ndarray, covariance_SS: np.ndarray | None = None) -> float:
    """sum_j A_j^2 e_j, the response's share of the gradient's mean square; without a covariance, of exact values."""
    exact = float(squared_credit(chain, weights_SN) @ chain.energies)
    if covariance_SS is None:
        return exact
    noise = make_noise(chain, weights_SN, covariance_SS)
    # whatever the segment is, a baseline's error is the same: its expected energy counts
    return exact + float(noise.before @ chain.expected_energies + (noise.after + 2 * noise.both) @ chain.energies)


def difference_weights(num_segments: int) -> np.ndarray:  # [S, N]
    """A_j = V_{j+1} - V_j."""
    return np.eye(num_segments, num_segments + 1, 1) - np.eye(num_segments, num_segments + 1)


def whole_weights(num_segments: int) -> np.ndarray:  # [S, N]
    """A_j = R - V_0: a response is credited as a whole."""
    weights_SN = np.zeros((num_segments, num_segments + 1))
    weights_SN[:, 0], weights_SN[:, -1] = -1, 1
    return weights_SN


def return_weights(num_segments: int) -> np.ndarray:  # [S, N]
    """A_j = R - V_j: a critic as baseline only."""
    weights_SN = -np.eye(num_segments, num_segments + 1)
    weights_SN[:, -1] = 1
    return weights_SN


def end_weights(gains_S: np.ndarray) -> np.ndarray:  # [S, N]
    """E_1 .. E_S of E_j = V_j + l_j (E_{j+1} - V_j), E_S = R."""
    unit_NN = np.eye(len(gains_S) + 1)
    rows_NN = unit_NN.copy()
    for j in reversed(range(len(gains_S))):
        rows_NN[j] = unit_NN[j] + gains_S[j] * (rows_NN[j + 1] - unit_NN[j])
    return rows_NN[1:]


def filter_weights(gains_S: np.ndarray) -> np.ndarray:  # [S, N]
    """v_0 .. v_{S-1} of v_j = V_j + m_j (v_{j-1} - V_j), v_0 = V_0."""
    unit_SN = np.eye(len(gains_S), len(gains_S) + 1)
    rows_SN = unit_SN.copy()
    for j in range(1, len(gains_S)):
        rows_SN[j] = unit_SN[j] + gains_S[j] * (rows_SN[j - 1] - unit_SN[j])
    return rows_SN


def own_vines(chain: Chain, num_vines: np.ndarray | float) -> np.ndarray:  # [S, S]
    """Covariance where every value is the mean of `num_vines` vines of its own state."""
    return np.diag(chain.spreads / num_vines)


def pooled(chain: Chain, num_rewards_S: np.ndarray) -> np.ndarray:  # [S, S]
    """Covariance where a value is the mean of all rewards of responses that run through its state.

    Of those that run through s_i a share p_ij runs through s_j as well: cov = p_ij sigma_j^2 / n_j for i < j.
    """
    upper_SS = chain.passing * (chain.spreads / num_rewards_S)[None, :]
    return upper_SS + np.triu(upper_SS, 1).T


def position_means(chains: Sequence[Chain], rows: Sequence[np.ndarray]) -> np.ndarray:  # [longest S]
    """The mean over those responses that have the position of one number per segment."""
    longest = max(chain.num_segments for chain in chains)
    table_nS = np.full((len(rows), longest), np.nan)
    for row_S, filled in zip(table_nS, rows, strict=True):
        row_S[: len(filled)] = filled
    return np.nanmean(table_nS, axis=0)


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:  # [n, longest S]
    """0 where a response has no such segment."""
    table_nS = np.zeros((len(rows), max(map(len, rows))))
    for row_S, filled in zip(table_nS, rows, strict=True):
        row_S[: len(filled)] = filled
    return table_nS
