"""The forecast of a gradient's mean square against the real estimators, under every outcome of a tiny world.

Every state there has a row of the policy's table to itself, so the scores of different tokens are orthogonal.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from two_lines import after_breaks, exact_chain, variance

from vineppo.analysis.moments import (
    difference_weights,
    mean_square,
    own_vines,
    whole_weights,
)
from vineppo.credit.common import CreditContext
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.exact.exhaustive import (
    add_gradient,
    every_outcome,
    make_environment,
    sample_groups,
    true_gradient,
)
from vineppo.rollouts import SamplingConfig


def enumerate_groups(make, group_size):
    """(groups, squared length of the batch gradient, probability) of every outcome of the real estimator."""
    environment = make_environment(after_breaks)
    estimator = make(environment)
    sampling = SamplingConfig(prompts_per_iteration=1, group_size=group_size, max_new_tokens=4)
    for outcome in every_outcome():
        environment.engine.outcome = outcome
        groups = sample_groups(environment, environment.task.sample(1, seed=0), sampling, seed=0)
        gradient = defaultdict(float)
        add_gradient(gradient, groups, estimator.assign(groups, seed=0), 1.0)
        yield groups, sum(x * x for x in gradient.values()), outcome.probability


def squares_of(make, forecast, group_size):
    """What one response adds to the mean square: as measured by enumeration, and as the forecast has it."""
    measured = predicted = 0.0
    for (group,), square, probability in enumerate_groups(make, group_size):
        chains = [exact_chain(rollout, group) for rollout in group]
        measured += probability * square * group_size
        predicted += probability * sum(map(forecast, chains)) / group_size
    return measured, predicted


SIGNAL = sum(x * x for x in true_gradient().values())


@pytest.mark.parametrize(("group_size", "num_vines"), [(1, 1), (1, 2), (2, 1)])
def test_vineppo(group_size, num_vines):
    """Siblings are drawn apart, so each of the others adds the squared mean; what they share is in `sharers`."""
    measured, predicted = squares_of(
        lambda environment: VinePPO(VinePPOConfig(num_vines=num_vines), CreditContext(environment)),
        lambda chain: mean_square(chain, difference_weights(chain.num_segments), own_vines(chain, num_vines)),
        group_size,
    )
    assert measured == pytest.approx(predicted + (group_size - 1) * SIGNAL)


@pytest.mark.parametrize("group_size", [2, 3])
def test_rloo(group_size):
    """Its baseline is the mean of group_size - 1 rewards. Two siblings meet in each other's baselines too."""
    others = group_size - 1
    measured, predicted = squares_of(
        lambda environment: RLOO(RLOOConfig()),
        lambda chain: mean_square(
            chain,
            whole_weights(chain.num_segments),
            np.diag([variance("") / others] + [0.0] * (chain.num_segments - 1)),
        ),
        group_size,
    )
    assert measured == pytest.approx(predicted + others * SIGNAL * (1 + 1 / others**2))


def first_only(chain, noise):
    """Covariance of an estimator that knows the prompt's value and needs no other."""
    return np.diag([noise] + [0.0] * (chain.num_segments - 1))
