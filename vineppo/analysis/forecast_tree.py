"""What the estimator "tree" would cost here: every inner state has vines, and all that is sampled is learnt from.

By the weights of credit/branching.py, with who passes through a state by its expectation. An approximation: vines that
meet states again count as if they did not, and the baselines' mean elsewhere is the filtered value along the response.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vineppo.analysis.fitted import squares_left
from vineppo.analysis.forecast import Forecast
from vineppo.analysis.moments import (
    Chain,
    difference_weights,
    filter_weights,
    make_noise,
    own_vines,
    squared_credit,
)
from vineppo.analysis.pilot import Pilot
from vineppo.credit.tree import TreeConfig


def tree(pilots: Sequence[Pilot], config: TreeConfig) -> Forecast:
    num_vines = config.num_vines
    assert isinstance(num_vines, int), "the same number of vines at every state"
    chains = [pilot.chain for pilot in pilots]
    weights = [share_weights(chain, num_vines) for chain in chains]
    sums = [products(chain, *pair, config.baseline_prior) for chain, pair in zip(chains, weights, strict=True)]
    squares = squares_left(np.array(sums)[:, None, :])
    shared = [w**2 * (1 - s) @ p.fork_squares[:, -1] for p, (w, s) in zip(pilots, weights, strict=True)]
    tokens = np.array([((1 / s - 1) * c.costs).sum() for c, (_, s) in zip(chains, weights, strict=True)])
    return Forecast(squares + np.array(shared), tokens, tokens)


def share_weights(chain: Chain, num_vines: int) -> tuple[np.ndarray, np.ndarray]:  # [S], [S]
    """Of every state the weight that arrives at it along the response, and the share that each continuation has.

    1 + `num_vines` continuations leave an inner state, or as many as there are siblings that come by.
    """
    leaving_S = np.maximum(chain.sharers, 1 + num_vines)
    leaving_S[0] = chain.sharers[0]  # the group
    share_S = chain.sharers / leaving_S
    return np.append(1.0, np.cumprod(share_S)[:-1]), share_S


def products(chain: Chain, weight_S: np.ndarray, share_S: np.ndarray, prior: float) -> np.ndarray:
    """[6] as `fitted.squares_left` takes them, without bias: of the response's own edges, and of its vines' tokens."""
    others_S = np.maximum(chain.sharers / share_S - 1, 1.0)
    filter_SN = filter_weights(prior / (prior + others_S))
    baseline_S = filter_SN @ chain.all_values
    noise_S = make_noise(chain, filter_SN, own_vines(chain, others_S)).before
    squares_S = squared_credit(chain, filter_SN) + noise_S
    next_SN = np.eye(chain.num_segments, chain.num_segments + 1, 1)
    end_S = next_SN @ chain.all_values
    end_squares_S = squared_credit(chain, next_SN) + error_below(chain, share_S)[1:]
    own = (weight_S * share_S) ** 2
    vines = weight_S**2 * share_S * (1 - share_S)
    left_S, expected_left_S = (np.cumsum(e[::-1])[::-1] for e in (chain.energies, chain.expected_energies))
    expected_S = own * chain.expected_energies + vines * expected_left_S
    energy_S, vine_energy_S = own * chain.energies, vines * left_S
    sum_S = energy_S * end_S + vine_energy_S * chain.reward
    columns = [
        expected_S,
        expected_S * baseline_S,
        expected_S * squares_S,
        sum_S,
        sum_S * baseline_S,
        energy_S * end_squares_S + vine_energy_S * chain.reward**2,
    ]
    return np.stack(columns).sum(axis=1)


def error_below(chain: Chain, share_S: np.ndarray) -> np.ndarray:  # [N]
    """Variance of the mean of what a state's continuations earn, the one that is branched again among them."""
    steps_S = squared_credit(chain, difference_weights(chain.num_segments))
    errors_N = np.zeros(chain.num_segments + 1)
    for j in reversed(range(chain.num_segments)):
        mean = share_S[j] * (steps_S[j] + errors_N[j + 1]) + (1 - share_S[j]) * chain.spreads[j]
        errors_N[j] = mean * share_S[j] / chain.sharers[j]
    return errors_N
