"""Laws of credit in worlds where everything is known. Samples are checked to 4 standard errors, with fixed seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, variance

import numpy as np
import pytest

from vineppo.cli import main
from vineppo.credit.common import CreditContext
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.environment import State
from vineppo.exact.known import BestBaseline, KnownCritic
from vineppo.exact.measure import (
    Errors,
    Method,
    all_rollouts,
    full_text,
    make_methods,
    measure_world,
    run,
    sample_batch,
)
from vineppo.exact.methods import CRITIC_ERROR, GROUP_SIZE, ROWS, Row, Unmerged, rows_of
from vineppo.exact.play import make_environment
from vineppo.exact.world import END, World
from vineppo.exact.worlds import WORLDS, find_world
from vineppo.sample import Sample
from vineppo.segments import cut_lines
from vineppo.types import Assigned, Credit, ExtraRollout, Problem, Rollout

WORLD = find_world("language")
METHODS = {method.row.name: method for method in make_methods(WORLD)}
WITH_FORMULA = [name for name, method in METHODS.items() if method.row.expected]
NUM_BATCHES = 60


@pytest.fixture(scope="module")
def sampled() -> tuple[dict[str, np.ndarray], np.ndarray]:  # {name: [N, S, A]}, [N, S, A]
    tallies, yardstick = run(WORLD, [METHODS[name] for name in WITH_FORMULA], NUM_BATCHES, seed=1)
    return {name: np.stack(t.gradients) for name, t in zip(WITH_FORMULA, tallies, strict=True)}, np.stack(yardstick)


def relative_bias(method: Method) -> float:
    true_SA = method.world.true_gradient
    assert method.expected_gradient is not None
    return float(np.linalg.norm(method.expected_gradient - true_SA) / np.linalg.norm(true_SA))


def excess(errors_NSA: np.ndarray, mean_SA: np.ndarray | float | None) -> float:
    """How far the mean of independent errors is from `mean_SA`, in standard errors of its squared distance.

    The squared length of a mean is tr(C) / N on average if there is nothing else, with variance 2 tr(C^2) / N^2.
    """
    assert mean_SA is not None
    errors_ND = (errors_NSA - mean_SA).reshape(len(errors_NSA), -1)
    cov_DD = np.cov(errors_ND.T) / len(errors_ND)
    distance2 = (errors_ND.mean(axis=0) ** 2).sum()
    return float((distance2 - np.trace(cov_DD)) / math.sqrt(2 * (cov_DD**2).sum()))


# Values


def estimates(state: str, num_estimates: int, num_vines: int) -> list[float]:
    """Independent ones: each for a problem of its own."""
    environment = make_environment(WORLD)
    prompt_ids, response_ids = (tuple(environment.tokenizer.encode(part)) for part in (state[0], state[1:]))
    states = {
        (str(i), prompt_ids + response_ids): (
            State(Problem(str(i), state[0], "right"), prompt_ids, response_ids),
            WORLD.budget - len(response_ids),
        )
        for i in range(num_estimates)
    }
    vineppo = VinePPO(VinePPOConfig(num_vines=num_vines), CreditContext(environment))
    return [estimate.mean for estimate in vineppo.estimate(states, seed=3).values()]


@pytest.mark.parametrize("state", ["3", "4+", "6*\n", "4+\n+"])
def test_values_are_unbiased_with_variance_p_1_minus_p_over_k(state):
    num, num_vines = 1000, 9
    found, p = estimates(state, num, num_vines), WORLD.value(state)
    assert fmean(found) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / num_vines / num))
    assert variance(found) == pytest.approx(p * (1 - p) / num_vines, rel=4 * math.sqrt(2 / num))


def test_with_many_vines_values_are_exact():
    (found,), p = estimates("4+", 1, 20_000), WORLD.value("4+")
    assert found == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))


def test_errors_tell_bias_from_spread():
    rng, errors = np.random.default_rng(0), Errors()
    assert errors.bias_and_std() is None
    for i in range(20_000):
        errors.add(int(rng.integers(2)), i % 100, rng.normal(0.3 if i % 2 else -0.3, 0.5))
    assert errors.bias_and_std() == pytest.approx((0.3, 0.5), abs=0.02)


# Gradients, by enumeration


UNBIASED = [
    *("RLOO", "PPO λ=1, exact critic", "PPO λ=0.95, exact critic", "PPO λ=0, exact critic", "PPO λ=1, wrong critic"),
    *("exact Q, best baseline", "potential, exact model", "potential, wrong model"),
]


@pytest.mark.parametrize("world", WORLDS)
def test_the_mean_gradient_is_the_true_one(world):
    methods = make_methods(find_world(world), [row for row in ROWS if row.name in UNBIASED])
    assert len(methods) == len(UNBIASED)
    for method in methods:
        assert relative_bias(method) < 1e-12


@pytest.mark.parametrize("world", WORLDS)
def test_vineppo_is_unbiased_where_lines_are_cut_as_the_program_cuts_them(world):
    methods = [
        method
        for method in make_methods(find_world(world))
        if isinstance(method.estimator, VinePPO | Unmerged) and method.row.name not in BIASED
    ]
    assert len(methods) >= 2
    for method in methods:
        assert relative_bias(method) < 1e-12


BIASED = {
    "VinePPO K=9, full budget": 0.013,
    "VinePPO K=9, paper's cuts": 0.113,
    "VinePPO K=9, silent end": 0.071,
    "VinePPO K=9, cut in half": 0.206,
}


@pytest.mark.parametrize("name", BIASED)
def test_cuts_that_look_ahead_and_values_of_another_budget_bias_the_gradient(name):
    """At any number of vines: values are exact here."""
    assert relative_bias(METHODS[name]) == pytest.approx(BIASED[name], abs=5e-4)


def test_an_end_that_joins_the_segment_before_it_is_biased_by_what_it_mixes():
    """Only the next token tells whether the segment is over: if it is END, the segment gets the credit of END, and END
    that of the segment; no other token would have."""
    extra = []
    for text, p in WORLD.responses:
        cuts = cut_lines(text[1:].removesuffix(END))
        if text[-1] == END and cuts and cuts[-1] == len(text) - 2:
            start, end = (0, *cuts)[-2:]
            values = WORLD.values(text)
            of_segment, of_end = values[end] - values[start], values[end + 1] - values[end]
            extra.append((text, [0.0] * start + [of_end] * (end - start) + [of_segment], p))
    error_SA = WORLD.policy_gradient(extra)
    gradient_SA = METHODS["VinePPO K=9, silent end"].expected_gradient
    assert gradient_SA == pytest.approx(WORLD.true_gradient + error_SA, abs=1e-14)


def test_grpo_counts_itself_in_its_mean_and_scales_prompts_by_their_spread():
    true_SA = WORLD.true_gradient
    no_std, grpo = (METHODS[name].expected_gradient for name in ("GRPO without std", "GRPO"))
    assert no_std == pytest.approx(true_SA * (GROUP_SIZE - 1) / GROUP_SIZE, abs=1e-14)
    assert grpo is not None
    ratio_PX = (grpo / true_SA).reshape(len(WORLD.prompts), -1)
    assert np.ptp(ratio_PX, axis=1) == pytest.approx(0, abs=1e-9)  # one factor for each prompt
    assert np.ptp(ratio_PX[:, 0]) > 0.05  # and not the same for all: another objective
    assert ratio_PX.min() > 1


def test_gae_with_a_wrong_critic_and_lambda_0_follows_the_wrong_values():
    """Policy gradient theorem, with wrong values in place of the exact ones: sum_a pi(a|s) Q'(s, a) grad log pi."""
    critic = KnownCritic(WORLD, CRITIC_ERROR)
    reach: dict[str, float] = {}
    for text, p in WORLD.responses:
        for t in range(1, len(text)):
            reach[text[:t]] = reach.get(text[:t], 0.0) + p
    mean_SA = np.zeros_like(WORLD.true_gradient)
    for state, p in reach.items():
        row = WORLD.rows_N[WORLD.node(state)]
        after = [state + a for a in WORLD.actions]
        over = [s[-1] == END or len(s) > WORLD.budget for s in after]
        q_A = np.array([WORLD.value(s) if end else critic.values_of(s)[-1] for s, end in zip(after, over, strict=True)])
        mean_SA[row] += p * WORLD.probs_SA[row] * (q_A - WORLD.probs_SA[row] @ q_A)
    method = METHODS["PPO λ=0, wrong critic"]
    assert method.expected_gradient == pytest.approx(mean_SA, abs=1e-14)
    assert relative_bias(method) > 0.2
    assert 0.01 < relative_bias(METHODS["PPO λ=0.95, wrong critic"]) < 0.1


def test_the_best_baseline_leaves_the_least_variance():
    """Per state, of E |(Q(s, a) - b) grad log pi(a|s)|^2 over a."""
    world = find_world("repair-8")
    best = BestBaseline(world)
    node = world.node("a+\n")
    probs_A, q_A = world.probs_SA[world.rows_N[node]], world.action_values(node, world.budget - 2)

    def square(b: float) -> float:
        scores_AA = np.eye(len(probs_A)) - probs_A
        return float(probs_A @ ((q_A - b) ** 2 * (scores_AA**2).sum(axis=1)))

    b = best.baseline(node, world.budget - 2)
    assert square(b) < min(square(b - 1e-3), square(b + 1e-3))
    assert square(b) < 0.3 * square(world.value("a+\n"))


# Gradients, sampled by the program


@pytest.mark.parametrize("name", WITH_FORMULA)
def test_the_sampled_gradient_has_the_enumerated_mean(sampled, name):
    assert excess(sampled[0][name], METHODS[name].expected_gradient) < 4


def test_exact_identities_of_sampled_gradients(sampled):
    gradients, yardstick_NSA = sampled
    assert gradients["GRPO without std"] == pytest.approx(gradients["RLOO"] * (GROUP_SIZE - 1) / GROUP_SIZE, abs=1e-12)
    assert gradients["PPO λ=0, exact critic"] == pytest.approx(yardstick_NSA, abs=1e-12)


def test_variance_falls_with_vines_and_a_wrong_critic_raises_it(sampled):
    variances = {name: gradients_NSA.var(axis=0).sum() for name, gradients_NSA in sampled[0].items()}
    assert variances["VinePPO K=1"] > variances["VinePPO K=3"] > variances["VinePPO K=9"] > variances["VinePPO K=27"]
    assert variances["PPO λ=1, wrong critic"] > variances["PPO λ=1, exact critic"]
    assert variances["PPO λ=0, exact critic"] < 0.7 * variances["RLOO"]


@pytest.mark.parametrize("world", ["repair-8", "fatal-late-32", "dead-16"])
def test_in_chains_too(world):
    world = find_world(world)
    rows = [row for row in ROWS if row.name in ("RLOO", "VinePPO K=1", "PPO λ=0, wrong critic")]
    methods = make_methods(world, rows)
    tallies, _ = run(world, methods, 40, seed=2)
    for method, tally in zip(methods, tallies, strict=True):
        assert excess(np.stack(tally.gradients), method.expected_gradient) < 4


# What the loop does for an estimator


class Reweighted:
    """RLOO twice: half of it in the groups, half in extra rollouts, the first token in one and the rest in another,
    which has the first in its prompt; and it learns."""

    def __init__(self) -> None:
        self.rloo, self.updates = RLOO(RLOOConfig()), list[Sequence[Sample]]()

    def assign(self, groups, *, seed):
        assigned = self.rloo.assign(groups, seed=seed)
        halves = [[replace(c, advantages=tuple(a / 2 for a in c.advantages)) for c in g] for g in assigned.credits]
        pairs = [pair for g, cs in zip(groups, assigned.credits, strict=True) for pair in zip(g, cs, strict=True)]
        firsts = [ExtraRollout(first_only(r), credit, weight=0.5, root=i) for i, (r, credit) in enumerate(pairs)]
        rests = [
            ExtraRollout(*without_first(*pair), weight=0.5, root=i)
            for i, pair in enumerate(pairs)
            if len(pair[0].token_ids) > 1
        ]
        return Assigned(halves, {}, extra=(*firsts, *rests), trains_policy=len(self.updates) >= 2)

    def update(self, minibatch):
        self.updates.append(minibatch)
        return {}

    def memory(self):
        return {}

    def save(self, folder):
        pass

    load = save


def first_only(rollout: Rollout) -> Rollout:
    return replace(rollout, action_mask=tuple(t == 0 for t in range(len(rollout.token_ids))))


def without_first(rollout: Rollout, credit: Credit) -> tuple[Rollout, Credit]:
    completion = rollout.completion
    rest = replace(completion, token_ids=completion.token_ids[1:], logprobs=completion.logprobs[1:])
    boundaries = (0, len(rest.token_ids))
    prompt_ids = rollout.prompt_ids + rollout.token_ids[:1]
    return (
        replace(rollout, prompt_ids=prompt_ids, completion=rest, boundaries=boundaries),
        Credit(boundaries, credit.advantages[1:]),
    )


def test_extra_rollouts_are_part_of_the_gradient_and_warming_up_is_not_measured():
    made: list[Reweighted] = []

    def make(world: World, context: CreditContext) -> Reweighted:
        made.append(Reweighted())
        return made[-1]

    rows = [ROWS[0], Row("reweighted", make, num_warmup=2)]
    methods = make_methods(WORLD, rows)
    (rloo, twice), _ = run(WORLD, methods, 3, seed=1)
    assert np.stack(twice.gradients) == pytest.approx(np.stack(rloo.gradients), abs=1e-14)
    assert twice.tokens["trained"] == 2 * rloo.tokens["trained"]
    assert twice.tokens["sampled"] == rloo.tokens["sampled"]
    (estimator,) = made
    assert len(estimator.updates) == 5
    of_groups = [s for minibatch in estimator.updates[:2] for s in minibatch if not s.is_extra]
    assert twice.tokens["warmup"] == sum(len(sample.response_ids) for sample in of_groups)
    assert rloo.tokens["warmup"] == 0


def test_tokens_are_counted():
    rows = [row for row in rows_of(WORLD) if row.name in ("RLOO", "VinePPO K=3", "VinePPO K=9")]
    (rloo, three, nine), _ = run(WORLD, make_methods(WORLD, rows), 4, seed=0)
    assert rloo.tokens["trained"] == rloo.tokens["sampled"] == three.tokens["trained"]
    assert three.tokens["sampled"] > rloo.tokens["sampled"] > rloo.tokens["computed"]
    assert rloo.tokens["computed"] < three.tokens["computed"] < nine.tokens["computed"]


def test_segment_advantages_add_up():
    method = METHODS["VinePPO K=3"]
    rollouts = [rollout for rollout, _ in all_rollouts(WORLD, method.environment)][::50]
    assigned = method.estimator.assign([[rollout] for rollout in rollouts], seed=5)
    for rollout, (credit,) in zip(rollouts, assigned.credits, strict=True):
        per_segment = [credit.advantages[start] for start in credit.boundaries[:-1]]
        assert credit.values is not None
        assert math.fsum(per_segment) == pytest.approx(rollout.reward - credit.values[0])


def test_known_rollouts_are_those_that_are_sampled():
    environment = make_environment(find_world("dead-16"), num_alternatives=2)
    world = environment.task.world  # type: ignore[attr-defined]
    known = {full_text(world, rollout): rollout for rollout, _ in all_rollouts(world, environment)}
    groups, _ = sample_batch(environment, world, 0, seed=0)
    for rollout in (rollout for group in groups for rollout in group):
        same = replace(rollout, problem=known[full_text(world, rollout)].problem)
        assert same == known[full_text(world, rollout)]


# The command


def test_the_command_prints_tables_and_writes_json_and_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    arguments = ["exact", "--batches", "2", "--seed", "3", "--json", str(tmp_path / "exact.json")]
    worlds = ["--world", "repair-12", "--world", "language"]
    assert main([*arguments, *worlds, "--figures", str(tmp_path / "figures")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "exact.json").read_text())
    assert [world["name"] for world in result["worlds"]] == ["language", "repair-12"]
    for world in result["worlds"]:
        assert [row["name"] for row in world["rows"]] == [row.name for row in rows_of(find_world(world["name"]))]
        assert all(row["name"] in printed for row in world["rows"])
        assert "</svg>" in (tmp_path / "figures" / f"{world['name']}.svg").read_text()
    assert max(map(len, printed.splitlines())) <= 100


def test_one_world_is_shown_in_detail(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["exact", "--batches", "2", "--world", "dead-16"]) == 0
    printed = capsys.readouterr().out
    assert "credit, bias and spread" in printed
    assert "policy gradient, 2 batches of 16 rollouts" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_the_seed_decides_everything():
    rows = [row for row in ROWS if row.name in ("RLOO", "GRPO", "VinePPO K=3", "critic", "Tree K=1")]
    one, again, other = (measure_world(WORLD, 2, seed, rows) for seed in (3, 3, 4))
    assert one == again
    assert all(a["variance"] != b["variance"] for a, b in zip(one["rows"], other["rows"], strict=True))


def test_mistakes(tmp_path, capsys):
    assert main(["exact", "--batches", "1"]) == 2
    assert "--batches must be at least 2" in capsys.readouterr().err
    assert main(["exact", "--world", "nowhere"]) == 2
    assert "no such world; choose among language, fatal-8" in capsys.readouterr().err
    assert main(["exact", "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
