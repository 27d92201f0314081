"""Pilots against the truth: what a few vines say is right on average, and forks know what the best baseline leaves."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from two_lines import after_breaks, energy, exact_chain, variance

from vineppo.analysis.forks import Fork, quadratic_forms, squares
from vineppo.analysis.moments import difference_weights, mean_square, own_vines, return_weights, squared_credit
from vineppo.analysis.pilot import sample_pilots
from vineppo.exact.exhaustive import POLICY, Outcome, every_outcome, make_environment, sample_groups, to_text, value
from vineppo.rollouts import SamplingConfig

NUM_PILOTS = 4000


class Drawn(Outcome):
    """Forks go as chance has it."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    def choose(self, probabilities):
        return int(self.rng.choice(len(probabilities), p=probabilities))


def draw_groups(environment, num, group_size):
    sampling = SamplingConfig(prompts_per_iteration=num, group_size=group_size, max_new_tokens=4)
    return sample_groups(environment, environment.task.sample(num, seed=0), sampling, seed=0)


@pytest.fixture(scope="module")
def pilots():
    environment = make_environment(after_breaks, num_alternatives=2)
    environment.engine.outcome = Drawn(np.random.default_rng(0))  # type: ignore[attr-defined]
    groups = draw_groups(environment, NUM_PILOTS, 3)
    return sample_pilots(environment, groups, num_vines=2, num_forks=1, seed=0)


def mean_over_responses(number):
    """Of a number of one rollout, over all that there are."""
    environment = make_environment(after_breaks, num_alternatives=2)
    total = 0.0
    for outcome in every_outcome():
        environment.engine.outcome = outcome  # type: ignore[attr-defined]
        ((rollout,),) = draw_groups(environment, 1, 1)
        total += outcome.probability * number(rollout)
    return total


def check(numbers, truth):
    error = np.std(numbers, ddof=1) / sqrt(len(numbers))
    assert abs(np.mean(numbers) - truth) < 4 * error
    assert error < 0.25 * truth


def exact(number):
    return mean_over_responses(lambda rollout: number(exact_chain(rollout, [rollout])))


def differences(chain):
    return difference_weights(chain.num_segments)


@pytest.mark.parametrize("weights", [difference_weights, return_weights])
def test_squares_of_credit_have_the_right_mean(pilots, weights):
    check(
        [mean_square(p.chain, weights(p.chain.num_segments)) for p in pilots],
        exact(lambda chain: mean_square(chain, weights(chain.num_segments))),
    )


def test_so_has_vineppo(pilots):
    """Without siblings, whose shared states exact chains of one response do not know."""
    alone = [p.chain for p in pilots]
    for chain in alone:
        chain.sharers[:] = 1
    check(
        [mean_square(c, differences(c), own_vines(c, 1)) for c in alone],
        exact(lambda chain: mean_square(chain, differences(chain), own_vines(chain, 1))),
    )


def test_segments_decide_all_of_the_variance(pilots):
    decided = [squared_credit(p.chain, differences(p.chain)).sum() for p in pilots]
    assert exact(lambda chain: squared_credit(chain, differences(chain)).sum()) == pytest.approx(variance(""))
    check(decided, variance(""))
    check([p.chain.spreads[0] for p in pilots], variance(""))


@pytest.mark.parametrize(("column", "name"), [(0, "V"), (1, "best"), (2, "all actions")])
def test_forks(pilots, column, name):
    def of_state(state):
        actions = POLICY[state]
        pi = np.array(list(actions.values()))
        q = np.array([value(state + letter) for letter in actions])
        return squares(Fork(pi, float(pi @ pi), q, np.zeros(len(pi))))[column]

    def of_rollout(rollout):
        text = to_text(rollout.token_ids)
        return sum(of_state(text[:t]) for t in range(len(text)))

    truth = mean_over_responses(of_rollout)
    check([p.fork_squares[:, column].sum() for p in pilots], truth)
    if name == "V":  # by the sampled token instead of all of them
        text_of = lambda r: to_text(r.token_ids)  # noqa: E731
        by_tokens = mean_over_responses(
            lambda r: sum(
                energy(text_of(r), t) * (value(text_of(r)[: t + 1]) - value(text_of(r)[:t])) ** 2
                for t in range(len(r.token_ids))
            )
        )
        assert by_tokens == pytest.approx(truth)


def test_the_best_baseline_is_the_best_and_all_actions_are_better():
    rng = np.random.default_rng(1)
    for _ in range(50):
        pi, q = rng.dirichlet(np.ones(4)), rng.normal(size=4)
        fork = Fork(pi, float(pi @ pi), q, np.zeros(4))
        weights = pi * (1 - 2 * pi + pi @ pi)
        by_baseline = [weights @ (q - b) ** 2 for b in np.linspace(q.min() - 1, q.max() + 1, 2001)]
        with_value, best, all_actions = squares(fork)
        assert with_value == pytest.approx(weights @ (q - pi @ q) ** 2)
        assert best == pytest.approx(min(by_baseline), rel=1e-3)
        assert all_actions <= best + 1e-12 <= with_value + 2e-12
        assert squares(Fork(pi, float(pi @ pi), q + 7, np.zeros(4))) == pytest.approx(squares(fork))
        assert all(np.allclose(form, form.T) for form in quadratic_forms(fork))
