"""What a critic takes off a reward: exact means by enumeration, least squares in two ways, what is not trusted."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from judged import ArbitraryCritic, LeakingCritic, make_vine_critic

from vineppo.credit.control_variate import MAX_TRUST, PARTS, JudgedGroup, fit_trust, read
from vineppo.credit.least_squares import PRIOR_ROLLOUTS, Products, of_others
from vineppo.exact.exhaustive import exact_bias, make_environment
from vineppo.types import Completion, Problem, Rollout

EXACT = 1e-12
"""What rounding leaves of a bias that is 0."""


def make_rollout(probs: list[list[float]], tokens: list[int], num_kept: int = 9, reward: float = 1.0) -> Rollout:
    """A response over a policy that is written out, of which the `num_kept` likeliest tokens are told."""
    order = [sorted(range(len(row)), key=lambda a, row=row: -row[a])[:num_kept] for row in probs]
    alternatives = tuple(tuple((a, math.log(row[a])) for a in kept) for row, kept in zip(probs, order, strict=True))
    logprobs = tuple(math.log(row[token]) for row, token in zip(probs, tokens, strict=True))
    completion = Completion(tuple(tokens), logprobs, "eos", 0, alternatives)
    return Rollout(Problem("p", "x", ""), (99,), completion, "", reward, "correct", (0, len(tokens)), 9)


def random_probs(rng: random.Random, num_tokens: int) -> list[float]:
    """None so rare that the table leaves it out."""
    weights = [0.05 + rng.expovariate(1) for _ in range(num_tokens)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("num_kept", [1, 2, 5])
def test_luck_has_mean_0_whatever_the_critic_says(num_kept):
    rng = random.Random(num_kept)
    for _ in range(20):
        probs = random_probs(rng, 5)
        rows = [make_rollout([probs], [token], num_kept) for token in range(5)]
        q_LM = np.array([[rng.gauss(0, 3) for _ in range(num_kept)]])
        mean = sum(p * read(row, q_LM).luck_L[0] for p, row in zip(probs, rows, strict=True))
        assert abs(mean) < EXACT


def test_the_readings_of_one_state():
    """By hand: pi = .5 .3 .2 and q = 1 0 told of the first two; the rest counts as one token of value v."""
    reading = read(make_rollout([[0.5, 0.3, 0.2]], [1], num_kept=2), np.array([[1.0, 0.0]]))
    v, squares = 0.5 / 0.8, 0.25 + 0.09 + 0.04
    weights = [p * (1 - 2 * p + squares) for p in (0.5, 0.3, 0.2)]
    assert reading.values_L[0] == pytest.approx(v)
    assert reading.luck_L[0] == pytest.approx(0 - v)
    assert reading.best_L[0] == pytest.approx((weights[0] + weights[2] * v) / sum(weights))
    assert reading.weights_L[0] == pytest.approx(1 - 0.6 + squares)


def test_with_two_tokens_the_best_baseline_leaves_no_variance():
    for p in (0.5, 0.9, 0.999):
        q = np.array([[0.8, 0.1]])
        best = read(make_rollout([[p, 1 - p]], [0]), q).best_L[0]
        gradients = [(q[0, a] - best) * (np.eye(2)[a] - np.array([p, 1 - p])) for a in (0, 1)]
        assert gradients[0] == pytest.approx(gradients[1])


def test_rare_tokens_are_not_judged_and_luck_has_mean_0_all_the_same():
    probs = [0.9, 0.0991, 0.0009]
    rows = [make_rollout([probs], [token]) for token in range(3)]
    q_LM = np.array([[0.2, 0.9]])
    lucks = [read(row, q_LM).luck_L[0] for row in rows]
    assert lucks[2] == 0
    assert abs(sum(p * luck for p, luck in zip(probs, lucks, strict=True))) < EXACT


def test_a_certain_token_has_no_luck_and_no_weight():
    reading = read(make_rollout([[1.0]], [0]), np.array([[0.7]]))
    assert (reading.values_L[0], reading.best_L[0], reading.luck_L[0], reading.weights_L[0]) == (0.7, 0.7, 0.0, 0.0)


# Least squares


def judged_group(rng: random.Random, size: int = 3) -> JudgedGroup:
    rollouts, readings = [], []
    for _ in range(size):
        probs = [random_probs(rng, 3) for _ in range(rng.randint(1, 5))]
        tokens = [rng.randrange(3) for _ in probs]
        rollouts.append(make_rollout(probs, tokens, reward=rng.random()))
        readings.append(read(rollouts[-1], np.array([[rng.random() for _ in range(3)] for _ in probs])))
    return JudgedGroup(rollouts, readings)


def test_the_advantage_is_the_formula():
    """A_t = R - rbar - sum of trust x part, with every part by its definition."""
    group = judged_group(random.Random(3))
    trust = np.array([0.3, 0.5, 0.7, 1.1, 0.9])
    for i, found in enumerate(group.advantages(trust)):
        reading, others = group.readings[i], [j for j in range(3) if j != i]
        rbar = np.mean([group.group[j].reward for j in others])
        luck = np.mean([group.readings[j].luck_L.sum() for j in others])
        for t, advantage in enumerate(found):
            v, v_0 = reading.values_L[t], reading.values_L[0]
            parts = [reading.luck_L[t + 1 :].sum(), -luck, v_0 - rbar, v - v_0, reading.best_L[t] - v]
            assert advantage == pytest.approx(group.group[i].reward - rbar - trust @ np.array(parts))


def test_trust_is_a_ridged_least_squares_fit():
    """The same from all weighted rows at once, with the ridge as rows of their own."""
    rng = random.Random(1)
    groups = [judged_group(rng) for _ in range(200)]
    squares = sum((group.squares for group in groups), Products.none(len(PARTS)))
    rows = [
        (c_CL * np.sqrt(reading.weights_L)).T
        for group in groups
        for c_CL, reading in zip(group.columns, group.readings, strict=True)
    ]
    X = np.concatenate(rows)
    ridge = np.sqrt(PRIOR_ROLLOUTS / (3 * len(groups)) * (X[:, 1:] ** 2).sum(axis=0))
    stacked = np.concatenate([X[:, 1:], np.diag(ridge)]), np.concatenate([X[:, 0], np.zeros(len(PARTS))])
    assert fit_trust(squares) == pytest.approx(np.clip(np.linalg.lstsq(*stacked, rcond=None)[0], 0, MAX_TRUST))
    left = ((X[:, 0] - X[:, 1:] @ fit_trust(squares)) ** 2).sum() / (X[:, 0] ** 2).sum()
    assert squares.square_left(fit_trust(squares)) == pytest.approx(left)


def test_parts_that_are_left_out_are_not_trusted():
    squares = judged_group(random.Random(2)).squares
    assert fit_trust(squares, ["prompt"])[[0, 1, 3, 4]].tolist() == [0.0] * 4
    assert fit_trust(Products.none(len(PARTS))).tolist() == [0.0] * len(PARTS)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_each_group_is_left_out_of_its_own_sum(n):
    squares = [Products(np.full((6, 6), float(2**i)), 2.0**i) for i in range(n)]
    for i, found in enumerate(of_others(squares, Products(np.full((6, 6), 0.5), 0.5))):
        expected = 0.5 + sum(2**j for j in range(n) if j != i)
        assert (found.num_rollouts, found.products_CC[0, 0]) == (expected, expected)


# Expectations: every outcome of the two-line world


@pytest.mark.parametrize("num_alternatives", [2, 3])
@pytest.mark.parametrize("config", [{}, {"baseline": "value"}, {"control_variate": False}, {"num_vines": 1}])
@pytest.mark.parametrize("group_size", [2, 3])
def test_an_arbitrary_critic_biases_nothing(config, num_alternatives, group_size):
    bias = exact_bias(
        lambda environment: make_vine_critic(environment, **config),
        group_size=2 if "num_vines" in config else group_size,
        num_alternatives=num_alternatives,
    )
    assert bias < EXACT


def test_nor_does_trust_that_other_groups_of_the_iteration_decide(monkeypatch):
    def make(environment):
        estimator = make_vine_critic(environment)
        estimator.squares = Products.none(len(PARTS))
        return estimator

    assert exact_bias(make, num_prompts=2, num_alternatives=2) < EXACT
    monkeypatch.setattr("vineppo.credit.vine_critic.of_others", lambda own, before: own)
    assert exact_bias(make, num_prompts=2, num_alternatives=2) > 0.01  # fitted on its own rewards


def test_a_critic_that_has_seen_the_rewards_is_biased():
    bias = exact_bias(lambda environment: make_vine_critic(environment, LeakingCritic()), num_alternatives=2)
    assert bias > 0.05


def test_the_arbitrary_critic_is_wrong_and_trusted():
    """What makes the laws above say something."""
    estimator = make_vine_critic(make_environment(num_alternatives=2))
    assert min(estimator.trust(estimator.squares)) > 0.25
    assert len({ArbitraryCritic().value((0,), token) for token in range(4)}) == 4
