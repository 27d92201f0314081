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
    Chain,
    difference_weights,
    mean_square,
    own_vines,
    padded,
    return_weights,
    squared_credit,
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
    advantages = [np.array(formula([r.reward for r in pilot.group])) for pilot in pilots]
    rewards = [np.array([r.reward for r in pilot.group]) for pilot in pilots]
    slope = sum(a @ (r - r.mean()) for a, r in zip(advantages, rewards, strict=True))
    slope /= sum(len(r) / (len(r) - 1) * (r - r.mean()) @ (r - r.mean()) for r in rewards) or 1.0
    squares = np.array([np.mean(a**2 * p.group_energies) for a, p in zip(advantages, pilots, strict=True)])
    return Forecast(squares / slope**2 if slope else squares, np.zeros(len(pilots)), np.zeros(len(pilots)))


def rloo(pilots: Sequence[Pilot]) -> Forecast:
    return compared(pilots, leave_one_out)


def grpo(pilots: Sequence[Pilot]) -> Forecast:
    """Weighs problems anew. Taken for equally good as long as it is for these: slopes times equal gradients."""
    return compared(
        pilots, lambda rewards: group_advantages(rewards) if len(set(rewards)) > 1 else [0.0] * len(rewards)
    )


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


def tree(pilots: Sequence[Pilot], num_vines: int) -> Forecast:
    return for_each(pilots, lambda pilot: tree_numbers(pilot.chain, num_vines, pilot.fork_squares[:, -1]))


def tree_numbers(chain: Chain, num_vines: int, shared_S: np.ndarray) -> Numbers:
    """Every inner state has 1 + `num_vines` continuations, siblings among them; all tokens are learnt from.

    Weights are products of 1 over the continuations. Two that leave one state have in common what the state's mean
    gradient is, whose square `shared_S` is the all-action term of the segment.
    """
    num_segments = chain.num_segments
    steps_S = squared_credit(chain, difference_weights(num_segments))
    later_S = squared_credit(chain, return_weights(num_segments))
    left_S, expected_left_S = (np.cumsum(e[::-1])[::-1] for e in (chain.energies, chain.expected_energies))
    leaving_S = np.maximum(chain.sharers, 1 + num_vines).astype(float)
    leaving_S[0] = chain.sharers[0]  # the group
    below_S = error_below(chain, steps_S, leaving_S)
    weight, square, sampled = 1.0, 0.0, 0.0
    for j in range(num_segments):
        share = chain.sharers[j] / leaving_S[j]
        others = leaving_S[j] - 1
        baseline = chain.spreads[j] / others if others else 0.0
        square += (weight * share) ** 2 * (steps_S[j] + below_S[j + 1]) * chain.energies[j]
        square += weight**2 * share * (1 - share) * later_S[j] * left_S[j]
        square += weight**2 * share * baseline * (share * chain.expected_energies[j] + (1 - share) * expected_left_S[j])
        square += weight**2 * (1 - share) * shared_S[j]
        sampled += (1 / share - 1) * chain.costs[j]
        weight *= share
    return square, sampled, sampled


def error_below(chain: Chain, steps_S: np.ndarray, leaving_S: np.ndarray) -> np.ndarray:  # [N]
    """Variance of the mean of what a state's continuations earn, the one that is branched again among them."""
    errors_N = np.zeros(chain.num_segments + 1)
    for j in reversed(range(chain.num_segments)):
        branched = chain.sharers[j] / leaving_S[j]
        errors_N[j] = (branched * (steps_S[j] + errors_N[j + 1]) + (1 - branched) * chain.spreads[j]) / leaving_S[j]
    return errors_N


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
