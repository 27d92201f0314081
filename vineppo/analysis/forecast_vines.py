"""What the estimator "vines" would cost here: values from pools, smoothed along the response (credit/vines.py).

Its gains are fitted to earlier iterations. Here they are fitted to the other pilots, never to the one that they are
applied to, or the forecast would be too good. Who passes through a state enters by its expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vineppo.analysis.fitted import squares_left
from vineppo.analysis.forecast import Forecast
from vineppo.analysis.moments import (
    Chain,
    difference_weights,
    end_weights,
    filter_weights,
    make_noise,
    pooled,
    position_means,
    squared_credit,
)
from vineppo.analysis.pilot import Pilot
from vineppo.credit.config import VinesConfig
from vineppo.credit.worth import count_worthwhile

FEW = 1e-9
"""Rewards where there are none: a value that has no weight."""


def vines(pilots: Sequence[Pilot], config: VinesConfig) -> Forecast:
    """Where vines shall be worth their tokens, these are compared with what the same without vines would cost."""
    chains = [pilot.chain for pilot in pilots]
    plans = [Plan.make(chain, lambda state: 0.0) for chain in chains]
    spread_S, error_S = fit_gains(chains, [plan.num_rewards_S for plan in plans])
    if config.num_vines:
        squares = forecast(chains, plans, spread_S, error_S).squares
        price = float(squares.sum()) / sum(chain.num_tokens for chain in chains)
        plans = [Plan.make(chain, wanted(chain, config, price, spread_S, error_S)) for chain in chains]
        spread_S, error_S = fit_gains(chains, [plan.num_rewards_S for plan in plans])
    return forecast(chains, plans, spread_S, error_S)


def forecast(chains: Sequence[Chain], plans: Sequence[Plan], spread_S: np.ndarray, error_S: np.ndarray) -> Forecast:
    sums_nS6 = np.zeros((len(chains), len(spread_S), 6))
    for chain, plan, sums_S6 in zip(chains, plans, sums_nS6, strict=True):
        sums_S6[: chain.num_segments] = products(chain, plan.num_rewards_S, spread_S, error_S)
    return Forecast(
        squares=squares_left(sums_nS6),
        vine_tokens=np.array([plan.new_S @ (c.costs / c.sharers) for c, plan in zip(chains, plans, strict=True)]),
        extra_trained=np.zeros(len(chains)),
    )


@dataclass(frozen=True)
class Plan:
    new_S: np.ndarray  # vines of every state
    num_rewards_S: np.ndarray  # in its pool: those of siblings and of passing vines too

    @classmethod
    def make(cls, chain: Chain, num_wanted: Callable[[PlannedState], float]) -> Plan:
        new_S, num_rewards_S = np.zeros(chain.num_segments), np.zeros(chain.num_segments)
        for j in range(chain.num_segments):
            others, passing = chain.sharers[j] - 1, float(new_S @ chain.passing[:, j])
            new_S[j] = num_wanted(PlannedState(j, others, passing, num_rewards_S[j - 1] if j else 0.0))
            num_rewards_S[j] = others + passing + new_S[j]
        return cls(new_S, num_rewards_S)


class PlannedState(NamedTuple):
    j: int
    num_siblings: float
    num_passing: float
    num_above: float  # rewards in the pool of the state above


def wanted(
    chain: Chain, config: VinesConfig, price: float, spread_S: np.ndarray, error_S: np.ndarray
) -> Callable[[PlannedState], float]:
    """As credit.vines.Vines.num_wanted; `price` is of a token."""
    weight = 0.0

    def num_wanted(state: PlannedState) -> float:
        nonlocal weight
        j, most = state.j, config.num_vines
        if config.allocation == "lacking":
            return max(0.0, most - state.num_siblings - state.num_passing)
        if j == 0:
            return 0 if state.num_siblings > 0 else most
        if config.allocation == "even":
            return most
        passed_on = gain(spread_S[j - 1], max(state.num_above, FEW), error_S[j - 1])
        weight = float(chain.energies[j - 1] + passed_on**2 * weight)
        noise = float(spread_S[j]), float(error_S[j])
        num_rollouts = state.num_siblings + 1
        return count_worthwhile(weight, price * chain.costs[j], noise, num_rollouts, state.num_passing, most)

    return num_wanted


def fit_gains(chains: Sequence[Chain], num_rewards: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """By position [longest S]: the variance of one reward given s_j, and the mean square error of E_{j+1} as V(s_j).

    The latter is the step E[(V_{j+1} - V_j)^2] and what is left of the error of V^_{j+1} and all behind it.
    """
    steps = [squared_credit(chain, difference_weights(chain.num_segments)) for chain in chains]
    steps_S = np.maximum(position_means(chains, steps), 0.0)
    spread_S = position_means(chains, [chain.spreads for chain in chains])
    num_S = position_means(chains, num_rewards)
    error_S, behind = np.zeros(len(steps_S)), 0.0
    for j in reversed(range(len(steps_S))):
        error_S[j] = steps_S[j] + behind
        behind = gain(spread_S[j], num_S[j], error_S[j]) * error_S[j]
    return spread_S, error_S


def gain(spread: np.ndarray | float, num: np.ndarray | float, error: np.ndarray | float) -> np.ndarray:
    """l_j for a pool of `num` rewards."""
    whole = np.asarray(spread + num * error)
    return np.divide(spread, whole, out=np.zeros_like(whole), where=whole > 0)


def products(chain: Chain, num_rewards_S: np.ndarray, spread_S: np.ndarray, error_S: np.ndarray) -> np.ndarray:
    """[S, 6] as `fitted.squares_left` takes them, without bias. What was known before the segment has its expected
    energy as weight."""
    num_segments, num_rewards_S = chain.num_segments, np.maximum(num_rewards_S, FEW)
    end_SN = end_weights(gain(spread_S[:num_segments], num_rewards_S, error_S[:num_segments]))
    filter_SN = filter_weights(1 / (1 + num_rewards_S))
    noise = make_noise(chain, end_SN + filter_SN, pooled(chain, num_rewards_S))  # the one behind, the other before
    end_S, filtered_S = end_SN @ chain.all_values, filter_SN @ chain.all_values
    energy_S, expected_S = chain.energies, chain.expected_energies
    columns = [
        expected_S,
        expected_S * filtered_S,
        expected_S * (squared_credit(chain, filter_SN) + noise.before),
        energy_S * end_S,
        energy_S * (end_S * filtered_S + noise.both),
        energy_S * (squared_credit(chain, end_SN) + noise.after),
    ]
    return np.stack(columns, axis=1)
