"""Vines where they matter: exactly unbiased, within the tokens, and less variance for them."""

from __future__ import annotations

import itertools
import math
import random
from functools import partial
from statistics import fmean

import numpy as np
import pytest

from vineppo.credit.allocation import allocate, spend, squared_scores
from vineppo.credit.common import CreditContext
from vineppo.credit.states import StatesConfig, state_at, state_boundaries, state_key
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.exact.exhaustive import exact_bias
from vineppo.exact.measure import make_methods, run
from vineppo.exact.methods import Row
from vineppo.exact.worlds import find_world
from vineppo.types import Completion, Problem, Rollout


def noise(needs, counts):
    return math.fsum(need / count for need, count in zip(needs, counts, strict=True))


def test_what_is_spent_is_nearly_the_best_that_the_tokens_buy():
    """Against all whole numbers that cost as much at most, and against equal ones."""
    rng = random.Random(0)
    for _ in range(40):
        needs, costs = [rng.random() ** 3 for _ in range(3)], [rng.randint(1, 9) for _ in range(3)]
        counts = spend(needs, costs, 3)
        assert sum(k * c for k, c in zip(counts, costs, strict=True)) <= 3 * sum(costs)
        affordable = [
            k
            for k in itertools.product(range(1, 40), repeat=3)
            if sum(a * b for a, b in zip(k, costs, strict=True)) <= 3 * sum(costs)
        ]
        best = min(noise(needs, k) for k in affordable)
        assert noise(needs, counts) <= 1.15 * best + 1e-12
        assert noise(needs, counts) <= noise(needs, (3, 3, 3)) * 1.01


def test_many_vines_are_in_neyman_s_proportion():
    needs, costs = [1.0, 4.0, 9.0, 0.0], [1.0, 1.0, 4.0, 1.0]
    counts = spend(needs, costs, 1000)
    wanted = [math.sqrt(need / cost) for need, cost in zip(needs, costs, strict=True)]
    assert [k / counts[0] for k in counts[:3]] == pytest.approx([w / wanted[0] for w in wanted[:3]], rel=0.01)
    assert counts[3] == 1, "noise that multiplies nothing costs nothing"


def make_rollout(tokens, probs, boundaries, reward=1.0, alternatives=None, mask=None):
    completion = Completion(tokens, tuple(map(math.log, probs)), "eos", 0, alternatives)
    problem = Problem("p", "", "")
    return Rollout(problem, (9,), completion, "", reward, "correct", boundaries, len(tokens), action_mask=mask)


def test_squared_scores_are_those_of_a_softmax():
    """|e_y - pi|^2, from all tokens; from some of them, or from the drawn one alone, less."""
    rng = np.random.default_rng(0)
    pi_A = rng.dirichlet(np.ones(6))
    token = 2
    exact = float(((np.arange(6) == token) - pi_A) @ ((np.arange(6) == token) - pi_A))
    order = sorted(enumerate(np.log(pi_A).tolist()), key=lambda pair: -pair[1])

    def score(alternatives, mask=None):
        return squared_scores(make_rollout((token,), (pi_A[token],), (0, 1), 1.0, alternatives, mask))[0]

    assert score((tuple(order),)) == pytest.approx(exact)
    assert (1 - pi_A[token]) ** 2 == pytest.approx(score(None))
    assert score(None) < score((tuple(order[:3]),)) < exact
    assert score(None, mask=(False,)) == 0


def test_vines_go_where_tokens_are_uncertain_and_what_siblings_share_counts_for_all():
    sure, unsure = 0.99, 0.5
    rollout = make_rollout((1, 2, 3, 4), (sure, sure, unsure, sure), (0, 1, 2, 3, 4))
    counts = allocate([rollout], [rollout.boundaries], 5)
    of_state = [counts[state_key(state_at(rollout, b))] for b in range(4)]
    assert of_state[2] > of_state[0]
    assert of_state[3] > of_state[1]
    assert min(of_state) >= 1
    sibling = make_rollout((1, 2, 3, 5), (sure, sure, unsure, sure), (0, 1, 2, 3, 4))
    stranger = make_rollout((6, 7, 8, 9), (sure, sure, unsure, sure), (0, 1, 2, 3, 4))
    together = allocate([rollout, sibling, stranger], [rollout.boundaries] * 3, 5)
    shared, alone = (together[state_key(state_at(r, 2))] for r in (rollout, stranger))
    assert shared > alone


class Chosen(VinePPO):
    """Vines by any rule, which is given the estimator, the states, and how to estimate some of them."""

    def __init__(self, environment, counts):
        super().__init__(VinePPOConfig(num_vines=2), CreditContext(environment))
        self.counts = counts

    def boundaries(self, rollout):
        return state_boundaries(rollout, StatesConfig(kind="stride", stride=2))

    def assign(self, groups, *, seed):
        self.groups = groups
        return super().assign(groups, seed=seed)

    def estimate(self, states, *, seed, counts=None):
        return self.counts(self, states, partial(super().estimate, seed=seed))


def by_score(estimator, states, estimate):
    rollouts = [rollout for group in estimator.groups for rollout in group]
    return estimate(states, counts=allocate(rollouts, [estimator.boundaries(r) for r in rollouts], 2))


def by_what_follows(estimator, states, estimate):
    """Any function of the whole rollout will do: here of its reward, which no vine knows."""
    ((rollout,),) = estimator.groups
    return estimate(states, counts=dict.fromkeys(states, 1 + (rollout.reward > 0.3)))


def by_neighbours(estimator, states, estimate):
    """One pilot from each state; a second vine where its neighbour's pilot was good."""
    pilots = estimate(states, counts=dict.fromkeys(states, 1))
    keys = list(states)
    counts = {key: 1 + (pilots[keys[j - 1]].mean > 0.3) for j, key in enumerate(keys)} if len(keys) > 1 else None
    found = estimate(states, counts=counts or dict.fromkeys(states, 1))
    return {key: found[key] for key in states}


def by_own_pilot(estimator, states, estimate):
    """Stop once the first vine was good: the mean over vines then has the rewards that stopped it too often."""
    pilots = estimate(states, counts=dict.fromkeys(states, 1))
    more = {key: 0 if pilots[key].mean > 0.3 else 1 for key in states}
    extra = estimate({key: states[key] for key in states if more[key]}, counts=more) if any(more.values()) else {}
    return {
        key: type(pilot)(*key, rewards=(*pilot.rewards, *(extra[key].rewards if key in extra else ())))
        for key, pilot in pilots.items()
    }


@pytest.mark.parametrize("rule", [by_score, by_what_follows, by_neighbours])
def test_numbers_that_do_not_come_from_a_state_s_own_vines_are_exactly_unbiased(rule):
    assert exact_bias(lambda environment: Chosen(environment, rule), group_size=1, num_alternatives=2) < 1e-12


def test_numbers_that_do_are_biased():
    assert exact_bias(lambda environment: Chosen(environment, by_own_pilot), group_size=1) > 0.02


def test_vineppo_by_score_is_exactly_unbiased_with_siblings_too():
    def make(environment):
        config = VinePPOConfig(num_vines=2, allocation="by_score", max_states_per_rollout=1)
        return VinePPO(config, CreditContext(environment))

    assert exact_bias(make, group_size=2) < 1e-12


def after_breaks(text):
    return [i + 1 for i, letter in enumerate(text) if letter == "\n"]


def test_vines_by_score_leave_less_variance_for_the_same_tokens():
    """Of what vines add to the variance of exact credit: chains whose decisions come late."""
    world = find_world("repair-late-16")

    def row(allocation):
        config = VinePPOConfig(num_vines=3, allocation=allocation)
        return Row(allocation, lambda _, context: VinePPO(config, context), cuts=after_breaks)

    tallies, exact = run(world, make_methods(world, [row("equal"), row("by_score")]), 15, seed=0)
    equal, by_score = (
        fmean(((gradient - known) ** 2).sum() for gradient, known in zip(tally.gradients, exact, strict=True))
        for tally in tallies
    )
    assert by_score < 0.75 * equal
    assert tallies[1].tokens["sampled"] < 1.03 * tallies[0].tokens["sampled"]
