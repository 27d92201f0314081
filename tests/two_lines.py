"""Exact numbers of the world of exact/exhaustive.py, as the forecast of credit's cost takes them.

Every state there has a row of the policy's table to itself, so the scores of different tokens are orthogonal.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np

from vineppo.analysis.moments import Chain
from vineppo.exact.exhaustive import (
    BUDGET,
    POLICY,
    REWARDS,
    add_gradient,
    every_outcome,
    make_environment,
    to_text,
    true_gradient,
    value,
)
from vineppo.rollouts import SamplingConfig, sample_groups

SIGNAL = sum(x * x for x in true_gradient().values())
"""Squared length of the true gradient."""


def after_breaks(text: str) -> list[int]:
    return [i + 1 for i, letter in enumerate(text) if letter == "\n"]


def variance(state: str) -> float:
    return mean_of(state, lambda reward: reward**2) - value(state) ** 2


def mean_of(state, function):
    if state.endswith("="):
        return function(REWARDS[state[:-1]])
    return sum(p * mean_of(state + letter, function) for letter, p in POLICY[state].items())


def energy(text: str, t: int) -> float:
    probabilities = POLICY[text[:t]]
    return 1 - 2 * probabilities[text[t]] + sum(p * p for p in probabilities.values())


def expected_energy(state: str) -> float:
    return 1 - sum(p * p for p in POLICY[state].values())


def exact_chain(rollout, group) -> Chain:
    """With the values that vines would have if there were no end of them."""
    text, bounds = to_text(rollout.token_ids), rollout.boundaries
    states = [text[:b] for b in bounds[:-1]]
    ids = rollout.token_ids
    return Chain(
        problem="",
        reward=rollout.reward,
        num_tokens=len(ids),
        energies=np.array([sum(energy(text, t) for t in range(a, b)) for a, b in pairwise(bounds)]),
        expected_energies=np.array([sum(expected_energy(text[:t]) for t in range(a, b)) for a, b in pairwise(bounds)]),
        values=np.array([value(state) for state in states]),
        spreads=np.array([variance(state) for state in states]),
        counts=np.full(len(states), 1e15),
        costs=np.array([mean_of(state, lambda _: 1.0) for state in states]),
        sharers=np.array([sum(other.token_ids[:b] == ids[:b] for other in group) for b in bounds[:-1]]),
        logprobs=np.array([sum(rollout.completion.logprobs[a:b]) for a, b in pairwise(bounds)]),
    )


def enumerate_groups(make, group_size):
    """(groups, squared length of the batch gradient, probability) of every outcome of the real estimator."""
    environment = make_environment(after_breaks)
    estimator = make(environment)
    sampling = SamplingConfig(prompts_per_iteration=1, group_size=group_size, max_new_tokens=BUDGET)
    for outcome in every_outcome():
        environment.engine.outcome = outcome  # type: ignore[attr-defined]
        groups = sample_groups(environment, environment.task.sample(1, seed=0), sampling, seed=0)
        gradient = defaultdict(float)
        add_gradient(gradient, groups, estimator.assign(groups, seed=0), 1.0)
        yield groups, sum(x * x for x in gradient.values()), outcome.probability


def squares_of(make, forecast, group_size):
    """What one response adds to the mean square: as measured by enumeration, and as the forecast has it."""
    measured = predicted = 0.0
    for (group,), square, probability in enumerate_groups(make, group_size):
        measured += probability * square * group_size
        predicted += probability * sum(forecast(rollout, group) for rollout in group) / group_size
    return measured, predicted
