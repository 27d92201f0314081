"""Credit from values that are known: critics that are exact or wrong by a known error, and the best baseline.

What a critic could do if it cost nothing; no estimator that trains has these.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from vineppo.credit.common import differences
from vineppo.exact.world import World
from vineppo.sample import Sample
from vineppo.seeding import derive_seed
from vineppo.types import Assigned, Credit, Group, Rollout


class KnownCritic:
    """V of what is still to come, or `error` above or below it: a coin decided for every state, once and for all."""

    def __init__(self, world: World, error: float = 0.0):
        self.world, self.error = world, error
        self.error_at = cache(self._error_at)

    def values(self, responses: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[float]]:
        """V of the state before every response token and after the last, [L+1] for each (prompt_ids, response_ids)."""
        return [self.values_of(self.world.text(prompt_ids + response_ids)) for prompt_ids, response_ids in responses]

    def values_of(self, text: str) -> list[float]:
        trace = self.world.trace(text)
        exact = [value - earned for value, earned in zip(trace.values, trace.earned, strict=True)]
        return [value + self.error_at(text[: t + 1]) for t, value in enumerate(exact)] if self.error else exact

    def step(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """What it knows, it knows."""
        return {}

    def _error_at(self, state: str) -> float:
        return self.error if derive_seed("critic", state) % 2 else -self.error


class KnownPotential:
    """A reward model that says V of the whole response, what was earned included, or is wrong by `error`."""

    def __init__(self, world: World, error: float = 0.0):
        self.critic = KnownCritic(world, error)

    def values(self, responses: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[float]]:
        """[L+1] for each (prompt_ids, response_ids)."""
        texts = [self.critic.world.text(prompt_ids + response_ids) for prompt_ids, response_ids in responses]
        return [
            [to_come + earned for to_come, earned in zip(row, self.critic.world.trace(text).earned, strict=True)]
            for text, row in zip(texts, self.critic.values(responses), strict=True)
        ]

    def memory(self) -> dict[str, float]:
        return {}


class BestBaseline:
    """Q(s, y) - b*(s) with the constant of each state that leaves the least variance.

    b* = sum_a w_a Q(s, a) / sum_a w_a with w_a = pi(a|s) |grad log pi(a|s)|^2 (Greensmith et al. 2004, section 4),
    where grad log pi(a|s) = e_a - pi(s), of squared length 1 - 2 pi(a|s) + sum_c pi(c|s)^2.
    """

    def __init__(self, world: World):
        self.world = world
        self.baseline = cache(self._baseline)

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        return Assigned([[Credit(r.boundaries, tuple(self.advantages(r))) for r in group] for group in groups], {})

    def advantages(self, rollout: Rollout) -> list[float]:  # [L]
        world, text = self.world, self.world.text(rollout.prompt_ids + rollout.token_ids)
        trace = world.trace(text)
        baselines = [self.baseline(node, world.budget - t) for t, node in enumerate(trace.nodes)]
        to_come = [value - earned for value, earned in zip(trace.values[1:], trace.earned[:-1], strict=True)]
        return [q - b for q, b in zip(to_come, baselines, strict=True)]

    def _baseline(self, node: int, tokens_left: int) -> float:
        probs_A = self.world.probs_SA[self.world.rows_N[node]]
        weights_A = probs_A * (1 - 2 * probs_A + (probs_A**2).sum())
        if weights_A.sum() < 1e-12:  # a certain token has no gradient
            return float(self.world.value_TN[tokens_left, node])
        return float(np.average(self.world.action_values(node, tokens_left), weights=weights_A))


def exact_advantages(world: World, text: str) -> tuple[float, ...]:  # [L]
    return differences(world.values(text))


def full_budget_values(world: World, text: str) -> list[float]:  # [L+1]
    """V of vines that may take the whole budget from every state; R at the end."""
    trace = world.trace(text)
    to_come = [float(world.value_TN[world.budget, node]) for node in trace.nodes]
    return [*map(operator.add, trace.earned, to_come), trace.values[-1]]


def over_segments(values: Sequence[float], boundaries: Sequence[int]) -> list[float]:  # [L]
    """Every token has the change of V over its segment; `values` [L+1] are those of token states."""
    return [values[end] - values[start] for start, end in pairwise(boundaries) for _ in range(start, end)]
