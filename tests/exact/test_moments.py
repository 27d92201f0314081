"""The forecast of a gradient's mean square against the real estimators, under every outcome of a tiny world.

Siblings are drawn apart, so each of the others adds the squared mean of one response's gradient.
"""

from __future__ import annotations

import numpy as np
import pytest
from two_lines import SIGNAL, exact_chain, squares_of, variance

from vineppo.analysis.moments import (
    difference_weights,
    end_weights,
    filter_weights,
    mean_square,
    own_vines,
    return_weights,
    whole_weights,
)
from vineppo.credit.common import CreditContext
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig


@pytest.mark.parametrize(("group_size", "num_vines"), [(1, 1), (1, 2), (2, 1)])
def test_vineppo(group_size, num_vines):
    def forecast(rollout, group):
        chain = exact_chain(rollout, group)
        return mean_square(chain, difference_weights(chain.num_segments), own_vines(chain, num_vines))

    config = VinePPOConfig(num_vines=num_vines)
    measured, predicted = squares_of(lambda e: VinePPO(config, CreditContext(e)), forecast, group_size)
    assert measured == pytest.approx(predicted + (group_size - 1) * SIGNAL)


@pytest.mark.parametrize("group_size", [2, 3])
def test_rloo(group_size):
    """Its baseline is the mean of the others' rewards. Two siblings meet in each other's baselines too."""
    others = group_size - 1

    def forecast(rollout, group):
        chain = exact_chain(rollout, group)
        noise = np.diag([variance("") / others] + [0.0] * (chain.num_segments - 1))
        return mean_square(chain, whole_weights(chain.num_segments), noise)

    measured, predicted = squares_of(lambda e: RLOO(RLOOConfig()), forecast, group_size)
    assert measured == pytest.approx(predicted + others * SIGNAL * (1 + 1 / others**2))


def test_smoothing_with_gain_0_and_1():
    """Gain 0 leaves every value as it was measured; gain 1 takes the reward for the end, and the prompt's value."""
    nothing, everything = np.zeros(4), np.ones(4)
    assert (end_weights(nothing) - filter_weights(nothing) == difference_weights(4)).all()
    assert (end_weights(everything) - filter_weights(everything) == whole_weights(4)).all()
    assert (end_weights(everything) - filter_weights(nothing) == return_weights(4)).all()
    halves = np.full(4, 0.5)
    assert end_weights(halves).sum(axis=1) == pytest.approx(1)
    assert filter_weights(halves).sum(axis=1) == pytest.approx(1)
