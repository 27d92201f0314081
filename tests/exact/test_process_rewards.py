"""A world whose lines pay: rewards on the way, exact by dynamic programming, and estimators that reckon with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vineppo.credit.common import CreditContext
from vineppo.credit.ppo import token_rewards
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.exact.chain import Chain
from vineppo.exact.measure import all_rollouts, full_text, make_methods
from vineppo.exact.methods import ROWS
from vineppo.exact.play import make_environment
from vineppo.exact.world import BREAK, END, make_world
from vineppo.exact.worlds import find_world

PAID = find_world("paid-8")
SMALL = make_world(Chain("small", 4, range(4), (0.8, 0.7), repair=0.3, pays=0.125))


def reward_of(text: str, pays: float) -> tuple[float, int]:
    """From the letters alone: what a response earns, and how many of its lines pay."""
    lines = text[1:].removesuffix(END).split(BREAK)
    good = [line == "+" or (line == "." and not i) for i, line in enumerate(lines)]
    return pays * sum(good) + good[-1], sum(good)


def test_a_response_earns_something_for_every_right_line_and_one_for_the_end():
    for text, _ in SMALL.responses:
        reward, num_paid = reward_of(text, 0.125)
        assert SMALL.value(text) == pytest.approx(reward)
        assert 0 <= num_paid <= 4


def test_values_are_means_of_the_whole_reward_over_all_responses():
    total: dict[str, float] = {}
    reach: dict[str, float] = {}
    for text, p in SMALL.responses:
        for t in range(1, len(text) + 1):
            total[text[:t]] = total.get(text[:t], 0.0) + p * reward_of(text, 0.125)[0]
            reach[text[:t]] = reach.get(text[:t], 0.0) + p
    assert len(reach) > 60
    for state in reach:
        assert SMALL.value(state) == pytest.approx(total[state] / reach[state], abs=1e-12)


def test_the_task_pays_each_segment_what_its_lines_earn():
    environment = make_environment(PAID)
    for rollout, _ in all_rollouts(PAID, environment):
        assert rollout.segment_rewards is not None
        text = full_text(PAID, rollout)
        letters = [line[-1] for line in text[1:].removesuffix(END).split(BREAK)]
        assert rollout.segment_rewards[:-1] == pytest.approx([0.02 * (letter == "+") for letter in letters[:-1]])
        assert rollout.segment_rewards[-1] == pytest.approx(1.02 * (letters[-1] == "+"))
        assert rollout.reward == pytest.approx(PAID.value(text))
        assert math.fsum(token_rewards(rollout)) == pytest.approx(rollout.reward)


@pytest.mark.parametrize(
    "name",
    [
        *("RLOO", "PPO λ=1, exact critic", "PPO λ=0.95, exact critic", "PPO λ=0, exact critic"),
        *("PPO λ=1, wrong critic", "potential, exact model", "potential, wrong model", "VinePPO K=1"),
        "exact Q, best baseline",
    ],
)
def test_estimators_with_process_rewards_have_no_bias(name):
    (row,) = [row for row in ROWS if row.name == name]
    (method,) = make_methods(PAID, [row])
    assert method.expected_gradient is not None
    assert np.linalg.norm(method.expected_gradient - PAID.true_gradient) < 1e-12 * np.linalg.norm(PAID.true_gradient)


def test_a_critic_that_is_wrong_still_biases_what_trusts_it():
    (row,) = [row for row in ROWS if row.name == "PPO λ=0, wrong critic"]
    (method,) = make_methods(PAID, [row])
    assert method.expected_gradient is not None
    error = np.linalg.norm(method.expected_gradient - PAID.true_gradient)
    assert error > 0.1 * np.linalg.norm(PAID.true_gradient)


def test_measured_values_are_of_the_whole_reward():
    """A vine is graded with its prefix, so what was earned before the state is in its reward."""
    environment = make_environment(PAID)
    estimator = VinePPO(VinePPOConfig(num_vines=2000), CreditContext(environment))
    rollout = max(all_rollouts(PAID, environment), key=lambda pair: pair[1])[0]
    (credit,) = estimator.assign([[rollout]], seed=0).credits[0]
    text = full_text(PAID, rollout)
    exact = [PAID.value(text[: 1 + b]) for b in credit.boundaries]
    assert credit.values == pytest.approx(exact, abs=4 * 0.6 / math.sqrt(2000))
    assert exact[-2] > 7 * 0.02
