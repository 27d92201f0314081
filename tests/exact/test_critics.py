"""The critic of credit/vine_critic.py where the truth is known: what it comes to, and what a wrong one costs."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from vineppo.credit.control_variate import JudgedGroup, read
from vineppo.exact.critics import KnownActionCritic, TableCritic
from vineppo.exact.known import BestBaseline
from vineppo.exact.measure import Summary, make_methods, run, sample_batch
from vineppo.exact.methods import ROWS, critic_row
from vineppo.exact.play import make_environment
from vineppo.exact.worlds import find_world

RLOO_ROW = ROWS[0]


@pytest.fixture(scope="module")
def world():
    return find_world("repair-8")


@pytest.fixture(scope="module")
def groups(world):
    return sample_batch(make_environment(world, num_alternatives=4), world, 0, 0)[0]


def test_trusted_in_full_an_exact_critic_leaves_q_less_the_best_baseline(world, groups):
    """R less all luck behind a token is Q(s, y): the rest of a response's return is luck and nothing else."""
    critic, best = KnownActionCritic(world), BestBaseline(world)
    for group in groups:
        readings = [read(*pair) for pair in zip(group, critic.action_values(group), strict=True)]
        found = JudgedGroup(group, readings).advantages(np.array([1.0, 0.0, 1.0, 1.0, 1.0]))
        for rollout, advantages_L in zip(group, found, strict=True):
            assert advantages_L == pytest.approx(best.advantages(rollout))


def test_the_table_comes_to_know_q_where_a_row_says_all(world):
    """At the likeliest tokens of fresh responses, where there is a choice; the rows of line breaks stand for all lines.

    After 1,600 responses a row's mean has a standard error of about .02.
    """
    environment = make_environment(world, num_alternatives=4)
    table, exact = TableCritic(world), KnownActionCritic(world)
    for n in range(100):
        table.learn([rollout for group in sample_batch(environment, world, n, 1)[0] for rollout in group], seed=0)
    fresh = [rollout for group in sample_batch(environment, world, 0, 2)[0] for rollout in group]
    for rollout, found_LM, true_LM in zip(fresh, table.action_values(fresh), exact.action_values(fresh), strict=True):
        choices = [t for t, pairs in enumerate(rollout.completion.alternatives or ()) if len(pairs) > 1]
        assert len(choices) == 8
        assert found_LM[choices, 0] == pytest.approx(true_LM[choices, 0], abs=0.1)


def test_a_critic_pays_and_a_wrong_one_costs_nothing(world):
    rows = [
        RLOO_ROW,
        critic_row("table", TableCritic),
        critic_row("exact", KnownActionCritic),
        critic_row("off", lambda world: KnownActionCritic(world, 0.3)),
        critic_row("upside down", lambda world: KnownActionCritic(world, upside_down=True)),
    ]
    methods = make_methods(world, rows)
    tallies, yardstick = run(world, methods, 30, seed=0)
    rloo, *others = (Summary(method, tally, yardstick) for method, tally in zip(methods, tallies, strict=True))
    table, exact, off, upside_down = (cast(float, one.against(rloo, "sampled")["ratio"]) for one in others)
    assert exact < table < 0.25
    assert table < off < 0.6
    assert upside_down < 1.1
    for summary in others:  # measured against exact credit on the same responses
        numbers = summary.numbers()
        assert numbers["bias"] < 2 * numbers["bias_se"]
