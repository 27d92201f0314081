"""From the rewards measured along one response to end values, which look forward, and baselines, which look back.

Each measurement V^_j is noisy, and its neighbours measure nearly the same:

    E_S = R,  E_j = V^_j + l_j (E_{j+1} - V^_j)      has mean V(s_j) given s_j, for every l_j
    v_j = V^_j + m_j (v_{j-1} - V^_j)                knows nothing of the tokens after s_j
    b_j = alpha_j + beta_j v_j                       nor does this
    A_j = E_{j+1} - b_j

The policy gradient keeps its mean as long as l, m, alpha and beta know nothing of what comes after their state. Here
they are made of the number of rewards that V^_j is the mean of, and of what earlier iterations found at position j.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from statistics import fmean
from typing import NamedTuple

Pool = Sequence[float]
"""Rewards of responses that run through a state, each of mean V(s) given s. With none, a neighbour's value is taken."""

MEMORY = 0.8
"""What the sums of earlier iterations count, beside those of the last one: the policy moves on."""
PRIOR_COUNT = 16.0
"""Responses that the mean over all positions counts for at each."""


@dataclass(frozen=True)
class Trail:
    """What was measured along a response, at the states where its S segments begin."""

    pools: Sequence[Pool]  # [S] without its own reward
    end_pools: Sequence[Pool]  # [S] the same, without rewards that decided which states are measured
    reward: float
    squared_scores: Sequence[float]  # [S]
    num_tokens_left: Sequence[int]  # [S]


class Sums(NamedTuple):
    """Over the responses that have a segment j."""

    count: float = 0.0
    tokens_left: float = 0.0
    measured: float = 0.0  # those with rewards in the pool of s_j; the next two are over these
    variance: float = 0.0  # of one reward given s_j: R^2 - V^_j R
    error: float = 0.0  # of E_{j+1} as V(s_j): E_{j+1}^2 - V^_j R, since R and V^_j are independent given s_j
    square: float = 0.0  # w A_j^2, with w the segment's squared score
    weight: float = 0.0  # w; and w v_j, w v_j^2, w E_{j+1}, w v_j E_{j+1}
    wv: float = 0.0
    wvv: float = 0.0
    we: float = 0.0
    wve: float = 0.0

    def plus(self, other: Sums, scale: float) -> Sums:
        return Sums(*(a + scale * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Gains:
    """l, m, alpha and beta, and the statistics that they are made of."""

    gae_lambda: float | None = None
    """l_j, with m_j = 0: generalised advantage estimation. None: l_j is fitted."""
    fits_baseline: bool = True
    """Whether alpha and beta are fitted. Else they are 0 and 1."""
    positions: tuple[Sums, ...] = ()
    num_tokens: float = 0.0  # sampled for what is in the positions, vines included

    def after(self, j: int, num: int) -> float:
        """l_j for a pool of `num` rewards: the least squared error, if E_{j+1} and V^_j err independently.

        Before anything is known, E_{j+1} is worth one reward of the pool. Without a pool it is all there is.
        """
        if self.gae_lambda is not None and num:
            return self.gae_lambda
        variance, error = self.noise(j) or (1.0, 1.0)
        return variance / (variance + num * error) if variance and num else float(not num)

    def before(self, num: int) -> float:
        """m_j: v_{j-1} is worth one reward of the pool."""
        return 1 / (1 + num) if self.gae_lambda is None or not num else 0.0

    def baseline(self, j: int, value: float) -> float:
        """alpha_j + beta_j v_j of least w A^2, which is the gradient's variance but for what segments share."""
        sums = self.at(j)
        if not self.fits_baseline or not sums.weight > 0:
            return value
        v, e = sums.wv / sums.weight, sums.we / sums.weight
        spread = sums.wvv / sums.weight - v * v
        beta = (sums.wve / sums.weight - v * e) / spread if spread > 1e-9 else 0.0
        return e + beta * (value - v)

    def noise(self, j: int) -> tuple[float, float] | None:
        """Of one reward given s_j and of E_{j+1}, as measurements of V(s_j): expected squares of their errors."""
        sums = self.at(j)
        if not sums.measured:
            return None
        return max(0.0, sums.variance / sums.measured), max(0.0, sums.error / sums.measured)

    def at(self, j: int) -> Sums:
        """Of position j, with some of all positions."""
        return self.positions[j].plus(self._prior, 1.0) if j < len(self.positions) else self._prior

    @cached_property
    def total(self) -> Sums:
        return add_up(self.positions)

    @cached_property
    def _prior(self) -> Sums:
        return Sums().plus(self.total, PRIOR_COUNT / self.total.count) if self.positions else Sums()

    def learn(self, trails: Iterable[Trail], num_tokens: int) -> Gains:
        """Those of later iterations, with what these responses add to the positions."""
        found = [self._products(trail) for trail in trails]
        new = [add_up(sums) for sums in zip_longest(*found, fillvalue=Sums())]
        pairs = zip_longest(new, self.positions, fillvalue=Sums())
        positions = tuple(mine.plus(earlier, MEMORY) for mine, earlier in pairs)
        return replace(self, positions=positions, num_tokens=num_tokens + MEMORY * self.num_tokens)

    def _products(self, trail: Trail) -> list[Sums]:
        found = []
        for j, (end, v) in enumerate(zip(end_values(trail, self), filtered_values(trail, self), strict=True)):
            w, pool, reward = trail.squared_scores[j], trail.pools[j], trail.reward
            product = fmean(pool) * reward if pool else 0.0
            noise = (1.0, reward**2 - product, end**2 - product) if pool else (0.0, 0.0, 0.0)
            square = w * (end - self.baseline(j, v)) ** 2
            found.append(Sums(1.0, trail.num_tokens_left[j], *noise, square, w, w * v, w * v * v, w * end, w * v * end))
        return found


def add_up(rows: Iterable[Sums]) -> Sums:
    return Sums(*(math.fsum(column) for column in zip(Sums(), *rows, strict=True)))


def end_values(trail: Trail, gains: Gains) -> list[float]:  # [S]
    """E_1 .. E_S"""
    values = [trail.reward]
    for j in reversed(range(1, len(trail.end_pools))):
        pool = trail.end_pools[j]
        values.append(mix(pool, values[-1], gains.after(j, len(pool))))
    return values[::-1]


def filtered_values(trail: Trail, gains: Gains) -> list[float]:  # [S]
    """v_0 .. v_{S-1}; the first pool is not empty."""
    values = [fmean(trail.pools[0])]
    for pool in trail.pools[1:]:
        values.append(mix(pool, values[-1], gains.before(len(pool))))
    return values


def segment_advantages(trail: Trail, gains: Gains) -> list[float]:  # [S]
    values = filtered_values(trail, gains)
    return [end - gains.baseline(j, v) for j, (end, v) in enumerate(zip(end_values(trail, gains), values, strict=True))]


def mix(pool: Pool, neighbour: float, gain: float) -> float:
    return fmean(pool) + gain * (neighbour - fmean(pool)) if pool else neighbour
