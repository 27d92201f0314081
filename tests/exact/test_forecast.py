"""Forecasts of estimators that pool and branch, against the estimators under every outcome of the tiny world.

They count by expectation who passes through a state, so they are near, not exact; siblings meet nearly everywhere here.
"""

from __future__ import annotations

import numpy as np
import pytest
from two_lines import POLICY, SIGNAL, enumerate_groups, exact_chain, squares_of, to_text, value

from vineppo.analysis import forecast_tree, forecast_vines
from vineppo.analysis.fitted import squares_left
from vineppo.analysis.forks import Fork, squares
from vineppo.credit.common import CreditContext
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.tree import TreeConfig, TreeCredit
from vineppo.credit.vines import Vines, VinesConfig

NEAR = 0.15


def plain(sums_S6) -> float:
    """sum_j w (E - v)^2: baselines as they come, before anything is known to fit them to."""
    _, _, wvv, _, wve, wee = sums_S6.T
    return float((wee - 2 * wve + wvv).sum())


@pytest.mark.parametrize("group_size", [2, 3])
def test_tree(group_size):
    config = TreeConfig(num_vines=1, baseline_prior=0.0, fit_baseline=False)

    def forecast(rollout, group):
        chain = exact_chain(rollout, group)
        weight_S, share_S = forecast_tree.share_weights(chain, 1)
        shared = weight_S**2 * (1 - share_S) @ all_actions(rollout)
        return plain(forecast_tree.products(chain, weight_S, share_S, 0.0)[None]) + shared

    measured, predicted = squares_of(lambda e: TreeCredit(config, CreditContext(e)), forecast, group_size)
    assert predicted == pytest.approx(measured - (group_size - 1) * SIGNAL, rel=NEAR)


def all_actions(rollout):  # [S]
    text, sums = to_text(rollout.token_ids), []
    for start, end in zip(rollout.boundaries, rollout.boundaries[1:], strict=False):
        sums.append(sum(fork_square(text[:t]) for t in range(start, end)))
    return np.array(sums)


def fork_square(state):
    pi, q = (np.array(row) for row in zip(*((p, value(state + a)) for a, p in POLICY[state].items()), strict=True))
    return squares(Fork(pi, float(pi @ pi), q, np.zeros(len(pi))))[2]


@pytest.mark.parametrize("group_size", [2, 3])
def test_vines(group_size):
    """Before the first fit: every neighbour is worth one reward of the pool."""
    config = VinesConfig(num_vines=1, allocation="lacking")

    def forecast(rollout, group):
        chain = exact_chain(rollout, group)
        ones = np.ones(chain.num_segments)
        plan = forecast_vines.Plan.make(chain, forecast_vines.wanted(chain, config, 0.0, ones, ones))
        return plain(forecast_vines.products(chain, plan.num_rewards_S, ones, ones))

    measured, predicted = squares_of(lambda e: Vines(config, CreditContext(e)), forecast, group_size)
    assert predicted == pytest.approx(measured - (group_size - 1) * SIGNAL, rel=NEAR)


def plan_of(chain, price=0.0, **config):
    ones = np.ones(chain.num_segments)
    return forecast_vines.Plan.make(chain, forecast_vines.wanted(chain, VinesConfig(**config), price, ones, ones))


def test_a_state_has_as_many_rewards_as_it_lacks_or_vines_as_are_worth_it():
    for (group,), _, _ in enumerate_groups(lambda environment: RLOO(RLOOConfig()), 2):
        chain = exact_chain(group[0], group)
        lacking = plan_of(chain, num_vines=2, allocation="lacking")
        assert (lacking.num_rewards_S > 2 - 1e-9).all()
        assert lacking.new_S[0] == 1  # the sibling is the other
        even = plan_of(chain, num_vines=2, allocation="even")
        assert even.new_S.tolist() == [0] + [2] * (chain.num_segments - 1)
        assert not plan_of(chain, price=9.0, num_vines=2).new_S.any()
        assert plan_of(chain, num_vines=2).new_S[1:2].tolist() == [2] * (chain.num_segments > 1)


def test_the_fit_is_least_squares_over_the_others():
    """Three responses of one segment: alpha and beta by hand from the two others, whose line goes through both."""
    w, v, e = np.array([1.0, 2.0, 3.0]), np.array([0.2, 0.4, 0.9]), np.array([0.1, 0.7, 0.5])
    sums_n16 = np.stack([w, w * v, w * v**2, w * e, w * v * e, w * e**2], axis=-1)[:, None, :]
    for i, left in enumerate(squares_left(sums_n16)):
        a, b = (k for k in range(3) if k != i)
        beta = (e[b] - e[a]) / (v[b] - v[a])
        assert left == pytest.approx(w[i] * (e[i] - e[a] - beta * (v[i] - v[a])) ** 2)
