"""Estimators under every outcome of the two-line world: their expected gradients are sums, with nothing assumed."""

from __future__ import annotations

import math

import pytest

from vineppo.credit.common import CreditContext
from vineppo.credit.grpo import GRPO, GRPOConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.exact.exhaustive import Outcome, every_outcome, exact_bias, true_gradient, value
from vineppo.segments import cut_lines
from vineppo.tasks.paper_segments import cut_before_lines

EXACT = 1e-12
"""What rounding leaves of a bias that is 0."""


def vineppo(num_vines):
    return lambda environment: VinePPO(VinePPOConfig(num_vines=num_vines), CreditContext(environment))


def test_outcomes_are_all_and_their_probabilities_add_up_to_1():
    """A fork of 2 branches, and behind its second one a fork of 3."""

    def program(outcome: Outcome) -> tuple[int, ...]:
        first = outcome.choose([0.25, 0.75])
        return (first, outcome.choose([0.5, 0.25, 0.25])) if first else (first, outcome.choose([1.0]))

    found = {program(outcome): outcome.probability for outcome in every_outcome()}
    assert found == {(0, 0): 0.25, (1, 0): 0.375, (1, 1): 0.1875, (1, 2): 0.1875}


def test_the_true_gradient_is_the_slope_of_the_value():
    """By the definition of a logit's gradient at the start: P(+) P(-) (Q(+) - Q(-))."""
    slope = true_gradient()["", "+"]
    assert math.isclose(slope, 0.6 * 0.4 * (value("+") - value("-")))
    assert math.isclose(slope, -true_gradient()["", "-"])


@pytest.mark.parametrize("group_size", [2, 3])
def test_comparison_within_a_group(group_size):
    assert exact_bias(lambda environment: RLOO(RLOOConfig()), group_size=group_size) < EXACT
    grpo = exact_bias(lambda environment: GRPO(GRPOConfig(divide_by_std=False)), group_size=group_size)
    assert math.isclose(grpo, 1 / group_size)  # the mean contains the response itself


@pytest.mark.parametrize(("group_size", "num_vines"), [(1, 1), (2, 1), (1, 2)])
def test_vineppo_is_unbiased_where_boundaries_are_stopping_times(group_size, num_vines):
    assert exact_bias(vineppo(num_vines), group_size=group_size, cut=cut_lines) < EXACT
    assert exact_bias(vineppo(num_vines), group_size=group_size, cut=cut_before_lines) > 0.2
