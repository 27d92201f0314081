"""Every rule is a stopping rule: by construction on random responses, and by its exact bias in a tiny world."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from vineppo.credit.common import CreditContext
from vineppo.credit.states import StatesConfig, check_states, state_boundaries
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.exact.exhaustive import exact_bias
from vineppo.exact.known import over_segments
from vineppo.exact.worlds import find_world
from vineppo.types import Completion, Problem, Rollout, SamplingParams, UserError

RULES = [
    StatesConfig(),
    StatesConfig(kind="stride", stride=1),
    StatesConfig(kind="stride", stride=3),
    StatesConfig(kind="forks"),
    StatesConfig(kind="forks", threshold=0.6),
    StatesConfig(kind="rare"),
    StatesConfig(kind="rare", threshold=0.5),
]
THINNED = [rule.model_copy(update=thin) for rule in RULES for thin in ({}, {"first": 2}, {"every": 2, "first": 3})]
VOCABULARY = range(6)


@cache
def distribution(prefix: tuple[int, ...]) -> tuple[float, ...] | None:
    """Of the next token; None where the environment writes next. Known from the tokens before."""
    rng = random.Random(str(prefix))
    if prefix and rng.random() < 0.25:
        return None
    weights = [rng.random() ** rng.choice((1, 12)) for _ in VOCABULARY]
    return tuple(weight / sum(weights) for weight in weights)


def continue_response(start: tuple[int, ...], length: int, seed: int) -> Rollout:
    """The prefix goes on in a way of its own; everything known of a token is known from the tokens before it."""
    rng, tokens = random.Random(seed), list(start)
    while len(tokens) < length:
        tokens += rng.choices(VOCABULARY, distribution(tuple(tokens)))
    probs = [distribution(tuple(tokens[:t])) for t in range(length)]
    likeliest = [sorted(enumerate(p or ()), key=lambda pair: -pair[1])[:2] for p in probs]
    completion = Completion(
        tuple(tokens),
        tuple(math.log(p[token]) if p else 0.0 for p, token in zip(probs, tokens, strict=True)),
        "eos",
        0,
        tuple(tuple((token, math.log(q)) for token, q in pairs) for pairs in likeliest),
    )
    cuts = [t for t in range(1, length) if tokens[t - 1] == 0]  # token 0 ends a segment
    mask = tuple(p is not None for p in probs)
    problem = Problem("p", "", "")
    return Rollout(problem, (9,), completion, "", 1.0, "correct", (0, *cuts, length), length, action_mask=mask)


@pytest.mark.parametrize("rule", THINNED, ids=repr)
def test_what_follows_moves_no_boundary(rule):
    rng, num_moved = random.Random(0), 0
    for trial in range(150):
        rollout = continue_response((), rng.randint(2, 30), trial)
        states = state_boundaries(rollout, rule)[:-1]
        t = rng.randint(1, len(rollout.token_ids) - 1)
        other = continue_response(rollout.token_ids[:t], rng.randint(t + 1, 40), 1000 + trial)
        again = state_boundaries(other, rule)[:-1]
        assert [b for b in states if b <= t] == [b for b in again if b <= t]
        num_moved += states != again
    assert num_moved > 20 or rule.first == 2


@pytest.mark.parametrize("rule", THINNED, ids=repr)
def test_states_are_where_the_policy_writes_next(rule):
    for seed in range(100):
        rollout = continue_response((), 1 + seed % 25, seed)
        boundaries = state_boundaries(rollout, rule)
        assert (boundaries[0], boundaries[-1]) == (0, len(rollout.token_ids))
        assert rollout.action_mask is not None
        assert all(rollout.action_mask[b] for b in boundaries[:-1])
        assert len(boundaries) - 1 <= (rule.first or math.inf)


def make_rollout(probs, boundaries=None, mask=None):
    """Tokens 0 with these probabilities, of two choices."""
    pairs = tuple(tuple(sorted(((0, math.log(p)), (1, math.log1p(-p))), key=lambda pair: -pair[1])) for p in probs)
    completion = Completion((0,) * len(probs), tuple(map(math.log, probs)), "eos", 0, pairs)
    length = len(probs)
    return Rollout(
        Problem("p", "", ""), (9,), completion, "", 1.0, "correct", boundaries or (0, length), length, action_mask=mask
    )


PROBS = (0.99, 0.2, 0.99, 0.6, 0.99, 0.99, 0.8)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, (0, 2, 4, 7)),
        ({"first": 2}, (0, 2, 7)),
        ({"every": 2}, (0, 4, 7)),
        ({"kind": "stride", "stride": 7}, (0, 7)),
        ({"kind": "stride", "stride": 3}, (0, 3, 6, 7)),
        ({"kind": "stride", "stride": 1}, (0, 1, 2, 3, 4, 5, 6, 7)),
        ({"kind": "stride", "stride": 1, "every": 4, "first": 1}, (0, 7)),
        ({"kind": "forks"}, (0, 1, 3, 6, 7)),  # before the tokens of .2, .6 and .8; the likeliest of .2 has .8
        ({"kind": "forks", "threshold": 0.7}, (0, 3, 7)),
        ({"kind": "rare"}, (0, 2, 4, 7)),  # after them; the last one ends the response
        ({"kind": "rare", "threshold": 0.5}, (0, 2, 7)),
    ],
)
def test_states_of_a_small_response(rule, expected):
    assert state_boundaries(make_rollout(PROBS, (0, 2, 4, 7)), StatesConfig(**rule)) == expected


def test_what_the_environment_wrote_joins_the_action_before_it():
    mask = (True, True, False, False, True, True, False)
    rollout = make_rollout((0.99, 0.2, 0.5, 0.5, 0.99, 0.2, 0.5), (0, 2, 3, 6, 7), mask)
    assert state_boundaries(rollout, StatesConfig()) == (0, 4, 7)  # of the cuts at 2 and 3, and the one at 6
    assert state_boundaries(rollout, StatesConfig(kind="rare")) == (0, 4, 7)
    assert state_boundaries(rollout, StatesConfig(kind="forks")) == (0, 1, 5, 7)
    assert state_boundaries(rollout, StatesConfig(kind="stride", stride=1)) == (0, 1, 4, 5, 7)


def test_forks_without_alternatives_are_the_users_error():
    rollout, rule = make_rollout(PROBS), StatesConfig(kind="forks")
    check_states(rule, SamplingParams(num_alternatives=1))
    check_states(StatesConfig(kind="rare"), SamplingParams())
    with pytest.raises(UserError, match=r"set sampling.num_alternatives = 1"):
        check_states(rule, SamplingParams())
    with pytest.raises(UserError, match="the completions have none"):
        state_boundaries(replace(rollout, completion=replace(rollout.completion, alternatives=None)), rule)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"kind": "stride"}, "need each other"),
        ({"kind": "rare", "stride": 4}, "need each other"),
        ({"threshold": 0.5}, "threshold is of kind"),
        ({"kind": "forks", "threshold": 0.0}, "greater than 0"),
        ({"first": 0}, "greater than or equal to 1"),
    ],
)
def test_knobs_without_a_meaning_are_refused(knobs, message):
    with pytest.raises(ValidationError, match=message):
        StatesConfig(**knobs)


class Measured(VinePPO):
    """At states of any choice."""

    def __init__(self, environment, choose):
        super().__init__(VinePPOConfig(num_vines=1), CreditContext(environment))
        self.boundaries = choose


def bias_of(choose):
    return exact_bias(lambda environment: Measured(environment, choose), group_size=1, num_alternatives=2)


EXACT = [rule for rule in THINNED if rule.kind != "segments"]


@pytest.mark.parametrize("rule", EXACT, ids=repr)
def test_measured_credit_at_these_states_is_exactly_unbiased(rule):
    assert bias_of(lambda rollout: state_boundaries(rollout, rule)) < 1e-12


def before_rare(rollout):
    """SPO's cut: before the token that was unlikely."""
    rare = [t for t, logprob in enumerate(rollout.completion.logprobs) if t and logprob < math.log(0.5)]
    return (0, *rare, len(rollout.token_ids))


def evenly(rollout):
    """Two states, however long the response is."""
    length = len(rollout.token_ids)
    return (0, length // 2, length)


def before_the_rarest(rollout):
    """TreeRL's: before the least likely token of the whole response, here of all but the first."""
    rarest = min(range(1, len(rollout.token_ids)), key=rollout.completion.logprobs.__getitem__)
    return (0, rarest, len(rollout.token_ids))


def last_states(rollout):
    """The last two of every-token states: counted from the end."""
    length = len(rollout.token_ids)
    return (0, *range(max(1, length - 1), length), length)


def test_vineppo_keeps_the_first_states():
    context = CreditContext(SimpleNamespace(params=SamplingParams()))  # type: ignore[arg-type]
    rollout = make_rollout(PROBS, (0, 2, 4, 7))
    for limit, expected in ((None, (0, 2, 4, 7)), (5, (0, 2, 4, 7)), (2, (0, 2, 7)), (1, (0, 7))):
        config = VinePPOConfig(max_states_per_rollout=limit)
        assert VinePPO(config, context).boundaries(rollout) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("choose", [before_rare, evenly, before_the_rarest, last_states])
def test_cuts_that_look_ahead_bias(choose):
    assert bias_of(choose) > 0.01


# Thinning where responses have many segments: all of them enumerated, values exact


def bias_in(world, credit):
    """Of the gradient that gives a response (its V before every token and at the end, its segments) this credit."""
    gradient_SA = world.policy_gradient(
        [(text, credit(world.values(text), lines(text)), p) for text, p in world.responses]
    )
    return np.linalg.norm(gradient_SA - world.true_gradient) / np.linalg.norm(world.true_gradient)


def lines(text):
    """Cut after every line break; the text's first letter is the prompt."""
    return [0, *(i for i in range(1, len(text) - 1) if text[i] == "\n"), len(text) - 1]


def keep(chosen):
    return lambda values, boundaries: over_segments(values, [*chosen(boundaries[:-1]), boundaries[-1]])


def evenly_two(states):
    return states if len(states) <= 2 else [states[0], states[len(states) // 2]]


def nothing_behind_the_second(values, boundaries):
    """The reference's: the segment after the last measured state takes the whole rest of the credit, later ones 0."""
    known = boundaries[:3]
    advantages = over_segments(values, known) if len(boundaries) <= 3 else over_segments(values, known[:2])
    if len(boundaries) > 3:
        advantages += [values[-1] - values[known[1]]] * (known[2] - known[1])
    return advantages + [0.0] * (len(values) - 1 - len(advantages))


@pytest.mark.parametrize("name", ["language", "fatal-8", "repair-8"])
def test_thinning_by_what_is_to_come_biases_and_the_first_states_do_not(name):
    world = find_world(name)
    for m in (1, 2, 3):
        assert bias_in(world, keep(lambda states, m=m: states[:m])) < 1e-12
        assert bias_in(world, keep(lambda states, m=m: states[::m])) < 1e-12
    zeros = bias_in(world, nothing_behind_the_second)
    if name == "language":
        assert bias_in(world, keep(evenly_two)) > 0.02  # one response in twelve has more than two segments
        assert 0.02 < zeros < 0.05
    else:
        assert bias_in(world, keep(evenly_two)) < 1e-12  # all responses have as many segments
        assert zeros > 0.8
