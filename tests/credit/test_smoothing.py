"""Values along one response: against generalised advantage estimation, least squares, and a world of known numbers."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest

from vineppo.credit.ppo import compute_gae
from vineppo.credit.smoothing import Gains, Sums, Trail, end_values, filtered_values, segment_advantages


def make_trail(rng: random.Random, num_states: int, *, reward: float | None = None, empty: float = 0.0) -> Trail:
    pools = [[rng.random() for _ in range(rng.randint(1, 4))] for _ in range(num_states)]
    pools = [pool if j == 0 or rng.random() >= empty else [] for j, pool in enumerate(pools)]
    scores = [rng.random() for _ in range(num_states)]
    return Trail(pools, pools, rng.random() if reward is None else reward, scores, [3] * num_states)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_with_lambda_the_advantages_are_gae_over_measured_values(gae_lambda):
    trail = make_trail(random.Random(1), 6)
    values = [*map(fmean, trail.pools), 0.0]
    gae = compute_gae([0.0] * 5 + [trail.reward], values, gamma=1, gae_lambda=gae_lambda)
    assert segment_advantages(trail, Gains(gae_lambda, fits_baseline=False)) == pytest.approx(gae)


def test_a_state_without_rewards_joins_its_neighbours():
    """As if it were no boundary."""
    for seed in range(20):
        trail = make_trail(random.Random(seed), 6, empty=0.5)
        filled = [j for j, pool in enumerate(trail.pools) if pool]
        pools = [trail.pools[j] for j in filled]
        without = Trail(pools, pools, trail.reward, [0.0] * len(filled), [1] * len(filled))
        fewer = segment_advantages(without, Gains())
        lengths = [b - a for a, b in pairwise([*filled, 6])]
        expected = [advantage for advantage, length in zip(fewer, lengths, strict=True) for _ in range(length)]
        assert segment_advantages(trail, Gains()) == pytest.approx(expected)


def test_before_anything_is_known_a_neighbour_is_worth_one_reward():
    trail = Trail([[0.5], [1.0, 0.0, 1.0], [0.25]], [[0.5], [1.0, 0.0, 1.0], [0.25]], 1.0, [1.0] * 3, [3, 2, 1])
    ends = end_values(trail, Gains())
    assert ends == pytest.approx([(2 + (0.25 + 1) / 2) / 4, (0.25 + 1) / 2, 1])
    assert filtered_values(trail, Gains()) == pytest.approx([0.5, (2 + 0.5) / 4, (0.25 + 2.5 / 4) / 2])


def test_the_fitted_baseline_is_the_weighted_least_squares_line():
    rng = random.Random(3)
    trails = [make_trail(rng, 1) for _ in range(300)]
    gains = Gains().learn(trails, 100)
    values, ends, weights = zip(*((fmean(t.pools[0]), t.reward, t.squared_scores[0]) for t in trails), strict=True)
    slope, intercept = np.polyfit(values, ends, 1, w=np.sqrt(weights))
    for value in (0.0, 0.3, 1.0):
        assert gains.baseline(0, value) == pytest.approx(intercept + slope * value)
    assert Gains(fits_baseline=False).learn(trails, 100).baseline(0, 0.3) == 0.3


def test_fitted_gains_are_those_of_the_known_errors():
    """Chains V_0, V_1, V_2 = R with V_1 = V_0 +- 1/4; a reward of a pool at s_1 has variance V_1 (1 - V_1)."""
    rng = random.Random(4)

    def trail() -> Trail:
        value = rng.choice([0.25, 0.75])
        pools = [[0.5], [float(rng.random() < value) for _ in range(2)]]
        return Trail(pools, pools, float(rng.random() < value), [1.0, 1.0], [2, 1])

    num = 40_000
    gains = Gains().learn((trail() for _ in range(num)), 0)
    sums = gains.positions[1]
    # the variance of R^2 - V^ R and of E^2 - V^ R, numbers within [-1, 1], is at most 1
    assert sums.variance / sums.count == pytest.approx(3 / 16, abs=4 / math.sqrt(num))
    assert sums.error / sums.count == pytest.approx(3 / 16, abs=4 / math.sqrt(num))  # E_2 = R
    assert gains.after(1, 1) == pytest.approx(1 / 2, abs=0.05)
    assert gains.after(1, 3) == pytest.approx(1 / 4, abs=0.05)


def test_where_rewards_do_not_vary_there_is_nothing_to_smooth():
    trails = [Trail([[1.0], [1.0]], [[1.0], [1.0]], 1.0, [0.5, 0.5], [2, 1])] * 10
    assert Gains().learn(trails, 100).after(1, 1) == 0.0


def test_positions_that_few_reach_follow_the_others_and_old_iterations_fade():
    rng = random.Random(5)
    long, short = [make_trail(rng, 5)], [make_trail(rng, 2) for _ in range(200)]
    gains = Gains().learn([*long, *short], 1000)
    assert [round(sums.count) for sums in gains.positions] == [201, 201, 1, 1, 1]
    total = [sum(column) for column in zip(*gains.positions, strict=True)]
    prior = [16 / total[0] * number for number in total]
    assert gains.at(4) == pytest.approx([own + more for own, more in zip(gains.positions[4], prior, strict=True)])
    assert gains.at(9) == pytest.approx(prior)
    later = gains.learn(short, 500)
    assert later.positions[4] == pytest.approx(Sums().plus(gains.positions[4], 0.8))
    assert later.num_tokens == 500 + 0.8 * 1000
    assert later.positions[0].count == pytest.approx(200 + 0.8 * 201)
