"""What every estimator of credit would cost here: mean square of its gradient, tokens sampled, tokens trained.

From pilots (pilot.py) by the formulas of moments.py; per response, so two estimators compare as the products of mean
square and tokens. What an estimator does by chance (who passes where) enters by its expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from vineppo.analysis.forks import BASELINES
from vineppo.analysis.moments import (
    difference_weights,
    mean_square,
    own_vines,
    padded,
    return_weights,
)
from vineppo.analysis.pilot import Pilot
from vineppo.credit.advantages import group_advantages, leave_one_out


@dataclass(frozen=True)
class Forecast:
    """Per problem [n]: one response's share of the gradient's mean square, and its tokens."""

    squares: np.ndarray
    vine_tokens: np.ndarray  # sampled beside the response
    extra_trained: np.ndarray  # learnt from beside the response


Numbers = tuple[float, float, float]
"""Square, vine tokens and extra trained tokens of one response."""


def for_each(pilots: Sequence[Pilot], numbers: Callable[[Pilot], Numbers]) -> Forecast:
    return Forecast(*(np.array(column) for column in zip(*map(numbers, pilots), strict=True)))


def compared(pilots: Sequence[Pilot], formula: Callable[[Sequence[float]], list[float]]) -> Forecast:
    """A formula of comparison within the group, in units in which a reward more is an advantage more."""
    rewards = [np.array([r.reward for r in pilot.group]) for pilot in pilots]
    advantages = [
        np.array(formula(row.tolist())) if row.min() < row.max() else np.zeros(len(row))  # exactly, without rounding
        for row in rewards
    ]
    slope = sum(a @ (r - r.mean()) for a, r in zip(advantages, rewards, strict=True))
    slope /= sum(len(r) / (len(r) - 1) * (r - r.mean()) @ (r - r.mean()) for r in rewards) or 1.0
    squares = np.array([np.mean(a**2 * p.group_energies) for a, p in zip(advantages, pilots, strict=True)])
    return Forecast(squares / slope**2 if slope else squares, np.zeros(len(pilots)), np.zeros(len(pilots)))


def rloo(pilots: Sequence[Pilot]) -> Forecast:
    return compared(pilots, leave_one_out)


def grpo(pilots: Sequence[Pilot]) -> Forecast:
    """Weighs problems anew. Taken for equally good as long as it is for these: slopes times equal gradients."""
    return compared(pilots, group_advantages)


def constant_baseline(pilots: Sequence[Pilot]) -> Forecast:
    """PPO with a critic that knows the mean reward and nothing else."""
    mean = fmean(r.reward for pilot in pilots for r in pilot.group)
    return for_each(
        pilots,
        lambda p: (float(np.mean([(r.reward - mean) ** 2 for r in p.group] * p.group_energies)), 0.0, 0.0),
    )


def exact_values(pilots: Sequence[Pilot], weights: Callable[[int], np.ndarray]) -> Forecast:
    return for_each(pilots, lambda p: (mean_square(p.chain, weights(p.chain.num_segments)), 0.0, 0.0))


def exact_credit(pilots: Sequence[Pilot]) -> Forecast:
    """B: values that are free and exact, V as baseline."""
    return exact_values(pilots, difference_weights)


def exact_baseline(pilots: Sequence[Pilot]) -> Forecast:
    """PPO with lambda = 1 and a critic that is right."""
    return exact_values(pilots, return_weights)


def exact_forks(pilots: Sequence[Pilot], baseline: str) -> Forecast:
    """Exact credit of single tokens with one of forks.BASELINES."""
    column = BASELINES.index(baseline)
    return for_each(pilots, lambda p: (float(p.fork_squares[:, column].sum()), 0.0, 0.0))


def vineppo(pilots: Sequence[Pilot], num_vines: int) -> Forecast:
    """Siblings share the vines of a state that they share."""

    def numbers(pilot: Pilot) -> Numbers:
        chain = pilot.chain
        square = mean_square(chain, difference_weights(chain.num_segments), own_vines(chain, num_vines))
        return square, float(num_vines * (chain.costs / chain.sharers).sum()), 0.0

    return for_each(pilots, numbers)


@dataclass(frozen=True)
class Allocation:
    """Per problem and position [n, longest S], for VinePPO with K_j vines at position j."""

    noise: np.ndarray  # a_j: what one vine at the state would leave of noise
    costs: np.ndarray  # c_j: tokens of one vine


def allocation(pilots: Sequence[Pilot]) -> Allocation:
    noise, costs = [], []
    for chain in (pilot.chain for pilot in pilots):
        before_S = np.append(0.0, chain.energies[:-1]) * chain.sharers
        noise.append(chain.spreads * (before_S + chain.expected_energies))
        costs.append(chain.costs / chain.sharers)
    return Allocation(padded(noise), padded(costs))
