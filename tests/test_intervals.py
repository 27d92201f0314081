"""Intervals hold the truth as often as they say, from the smallest numbers on."""

from __future__ import annotations

import math
from statistics import stdev

import numpy as np
import pytest
from scipy.stats import t as student

from vineppo.intervals import bootstrap, interval, proportion_ci95, score_ci95, student_95, weighted_mean, wilson


@pytest.mark.parametrize("df", [*range(1, 130), 1000, 9_999, 10_000])
def test_student_s_quantile_is_scipy_s(df):
    assert student_95(df) == pytest.approx(student.ppf(0.975, df), rel=1e-10)


def test_the_interval_over_seeds_is_student_s():
    values = [0.1, 0.4, 0.2, 0.9, 0.5]
    half = 2.7764451052 * stdev(values) / 5**0.5
    assert interval(values)["ci95"] == pytest.approx([0.42 - half, 0.42 + half])
    assert interval([0.3]) == {"mean": 0.3, "ci95": None, "n": 1}
    assert interval([]) == {"mean": None, "ci95": None, "n": 0}


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 16, 17, 18, 30])
def test_the_interval_over_seeds_covers_as_often_as_it_says(num_seeds):
    """20,000 draws, standard error 0.15 %. A normal's 1.96 from 17 seeds on would give 93.4 %."""
    draws = np.random.default_rng(num_seeds).normal(3.0, 0.5, size=(20_000, num_seeds))
    half = student_95(num_seeds - 1) * draws.std(axis=1, ddof=1) / math.sqrt(num_seeds)
    covered = np.abs(draws.mean(axis=1) - 3.0) <= half
    assert covered.mean() == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 20_000))
    assert interval(draws[0].tolist())["ci95"] == pytest.approx(
        [draws[0].mean() - half[0], draws[0].mean() + half[0]]
    )  # what was simulated is what is reported


def draw_scores(kind: str, num_problems: int, num_samples: int, draw: np.random.Generator) -> tuple[list[float], float]:
    """Scores of problems whose chances of success are drawn too, and the mean of all such problems."""
    chances, truth = {
        "even": (draw.random(num_problems), 1 / 2),
        "nearly all easy": (np.where(draw.random(num_problems) < 0.9, 1.0, 0.3), 0.93),
        "hard": (draw.beta(0.3, 3, num_problems), 1 / 11),
        "all or nothing": (draw.beta(0.3, 0.3, num_problems), 1 / 2),
        "alike": (np.full(num_problems, 0.03), 0.03),
    }[kind]
    return (draw.binomial(num_samples, chances) / num_samples).tolist(), truth


@pytest.mark.parametrize("kind", ["even", "nearly all easy", "hard", "all or nothing", "alike"])
@pytest.mark.parametrize(("num_problems", "num_samples"), [(5, 4), (10, 16), (20, 4), (50, 1), (100, 4)])
def test_the_interval_over_problems_covers_nearly_as_often_as_it_says(kind, num_problems, num_samples):
    """1,000 evaluations each, standard error 0.7 %; with 40,000 the least is 91.5 % ("hard", 10 problems)."""
    draw = np.random.default_rng(num_problems)
    covered = 0
    for _ in range(1000):
        values, truth = draw_scores(kind, num_problems, num_samples, draw)
        low, high = proportion_ci95(values)
        covered += low <= truth <= high
    assert covered / 1000 >= 0.915 - 4 * math.sqrt(0.95 * 0.05 / 1000)


def test_the_interval_over_many_problems_is_the_usual_one():
    """Mean +- 1.96 standard errors, whatever the distribution."""
    values = np.random.default_rng(0).beta(2, 3, 20_000)
    low, high = proportion_ci95(values.tolist())
    half = 1.96 * values.std(ddof=1) / math.sqrt(20_000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01 * half)


def test_agreement_of_all_problems_is_not_certainty():
    z = student_95(99)
    assert proportion_ci95([0.0] * 100) == pytest.approx((0.0, z**2 / (100 + z**2)))
    assert proportion_ci95([1.0] * 100) == pytest.approx((100 / (100 + z**2), 1.0))
    assert proportion_ci95([0.5] * 30) == pytest.approx(wilson(0.5, 30, student_95(29)))
    low, high = proportion_ci95([1.0])
    assert low < 0.01
    assert high == 1.0


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.1] * 7, [0.0, 0.0, 1e-9], [1.0, 1.0, 1 - 1e-9], [0.5]])
def test_the_interval_holds_the_mean_and_stays_among_the_possible(values):
    low, high = proportion_ci95(values)
    assert 0.0 <= low <= sum(values) / len(values) <= high <= 1.0


def test_a_score_in_0_to_1_has_the_interval_of_a_proportion():
    for values in ([0.0], [1.0, 1.0], [0.25, 1.0, 0.5]):
        assert score_ci95(values) == proportion_ci95(values)


@pytest.mark.parametrize("values", [[-1.0, 0.5, 1.0], [0.0, 1.0, 3.5, 2.0], [1.0, 1.0, math.nextafter(1.0, 2)]])
def test_rewards_that_are_no_proportion_have_student_s_interval(values):
    assert score_ci95(values) == tuple(interval(values)["ci95"])


def test_one_problem_s_reward_outside_0_and_1_has_no_interval():
    assert score_ci95([2.0]) is None
    assert score_ci95([-1e-9]) is None


def test_rewards_far_from_0_and_1_are_covered_as_often_as_it_says():
    """5,000 evaluations of 20 problems with rewards of -1 or 3, standard error 0.3 %."""
    rewards = np.random.default_rng(0).choice([-1.0, 3.0], size=(5000, 20))
    covered = 0
    for values in rewards.tolist():
        ci95 = score_ci95(values)
        assert ci95 is not None
        covered += ci95[0] <= 1.0 <= ci95[1]
    assert covered / 5000 == pytest.approx(0.95, abs=0.02)


def test_wilson_is_where_the_score_test_is_rejected():
    for end in wilson(0.3, 50, 1.96):
        assert abs(0.3 - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / 50))


def test_the_bootstrap_over_problems_covers_as_often_as_it_says():
    """Means of 40 problems with 3 states each that share an effect; 300 simulations, standard error 1.3 %."""
    covered = naive = 0
    clusters = np.repeat(np.arange(40), 3)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=40), 3) + 0.3 * rng.normal(size=120)

        def mean(weights: np.ndarray, values: np.ndarray = values) -> np.ndarray:
            return np.array([weighted_mean(values, weights)])

        (found,) = bootstrap(mean, list(clusters), seed=seed)
        assert found["low"] is not None
        assert found["high"] is not None
        covered += found["low"] < 0 < found["high"]
        naive += abs(values.mean()) < 1.96 * values.std() / math.sqrt(120)
    assert 0.90 < covered / 300 < 0.98
    assert naive / 300 < 0.85  # what states taken for independent would claim
