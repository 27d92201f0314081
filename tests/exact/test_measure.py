"""Laws of credit in a world where everything is known. Samples are checked to 4 standard errors, with fixed seeds."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from itertools import pairwise, product
from statistics import fmean, variance

import numpy as np
import pytest

from vineppo.cli import main
from vineppo.credit.common import CreditContext
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.environment import State
from vineppo.exact.measure import (
    CRITIC_ERROR,
    GROUP_SIZE,
    Errors,
    KnownCritic,
    all_rollouts,
    expected_gradients,
    full_text,
    make_methods,
    sample,
)
from vineppo.exact.world import (
    ACTIONS,
    BUDGET,
    CUTS,
    PROMPTS,
    World,
    default_policy,
    is_correct,
    is_over,
    make_environment,
    make_world,
    policy_gradient,
    row,
    to_text,
    true_gradient,
)
from vineppo.types import Problem, Request, SamplingParams

THETA_SA = default_policy()
WORLD = make_world(THETA_SA)
TRUE_SA = true_gradient(WORLD)
METHODS = {method.name: method for method in make_methods(WORLD, THETA_SA)}
NUM_BATCHES = 60


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(zip(METHODS, expected_gradients(WORLD, list(METHODS.values())), strict=True))


@pytest.fixture(scope="module")
def sampled() -> tuple[dict[str, np.ndarray], np.ndarray]:  # {name: [N, S, A]}, [N, S, A]
    tallies, yardstick = sample(WORLD, list(METHODS.values()), NUM_BATCHES, seed=1)
    return {name: np.stack(t.gradients) for name, t in zip(METHODS, tallies, strict=True)}, np.stack(yardstick)


def relative_bias(gradient_SA: np.ndarray) -> float:
    return float(np.linalg.norm(gradient_SA - TRUE_SA) / np.linalg.norm(TRUE_SA))


def excess(errors_NSA: np.ndarray, mean_SA: np.ndarray | float) -> float:
    """How far the mean of independent errors is from `mean_SA`, in standard errors of its squared distance.

    The squared length of a mean is tr(C) / N on average if there is nothing else, with variance 2 tr(C^2) / N^2.
    """
    errors_ND = (errors_NSA - mean_SA).reshape(len(errors_NSA), -1)
    cov_DD = np.cov(errors_ND.T) / len(errors_ND)
    distance2 = (errors_ND.mean(axis=0) ** 2).sum()
    return float((distance2 - np.trace(cov_DD)) / math.sqrt(2 * (cov_DD**2).sum()))


# The truth, computed in two ways


def test_values_are_those_of_all_strings_played_to_the_end():
    for prompt in PROMPTS:
        total = 0.0
        for letters in product(ACTIONS, repeat=BUDGET):  # what is drawn after the end changes nothing
            text = prompt + "".join(letters)
            probability = math.prod(WORLD.probs_SA[row(text[: t + 1]), ACTIONS.index(a)] for t, a in enumerate(letters))
            total += probability * is_correct(text[: text.index("=") + 1] if "=" in text else text)
        assert WORLD.value[prompt] == pytest.approx(total, abs=1e-12)
        assert 0.1 < total < 0.9


def expected_reward(world: World) -> float:
    """J(theta): the mean over prompts, which are equally likely."""
    return float(np.mean([world.value[prompt] for prompt in PROMPTS]))


def test_gradient_is_the_finite_difference_of_the_expected_reward():
    for s, a in product(range(4, 8), range(4)):  # of one prompt
        step_SA = np.zeros_like(THETA_SA)
        step_SA[s, a] = 1e-5
        above, below = (expected_reward(make_world(theta)) for theta in (THETA_SA + step_SA, THETA_SA - step_SA))
        assert TRUE_SA[s, a] == pytest.approx((above - below) / 2e-5, abs=1e-9)


def test_gradient_is_the_mean_of_reward_times_score():
    ends = [(text, reach / len(PROMPTS)) for text, reach in WORLD.reach.items() if is_over(text)]
    by_score_SA = policy_gradient(WORLD, [(text, [WORLD.value[text]] * (len(text) - 1), p) for text, p in ends])
    assert by_score_SA == pytest.approx(TRUE_SA, abs=1e-14)


def test_advantages_have_mean_zero_in_every_state():
    for state, value in WORLD.value.items():
        if not is_over(state):
            probs_A = WORLD.probs_SA[row(state)]
            assert sum(p * WORLD.value[state + a] for p, a in zip(probs_A, ACTIONS, strict=True)) == pytest.approx(
                value
            )


def test_the_world_is_not_trivial():
    ends = {text: reach / len(PROMPTS) for text, reach in WORLD.reach.items() if is_over(text)}
    truncated = sum(p for text, p in ends.items() if text[-1] != "=")
    assert 0.02 < truncated < 0.3
    sizes = Counter(
        b - a for r, _ in all_rollouts(WORLD, make_environment(THETA_SA)) for a, b in pairwise(r.boundaries)
    )
    assert set(sizes) == {1, 2}
    spread = {
        a: fmean(abs(WORLD.value[s + a] - WORLD.value[s]) for s in WORLD.value if not is_over(s)) for a in ACTIONS
    }
    assert spread["="] > 2 * spread["-"]  # ending decides, waiting hardly does


# The engine


def test_a_completion_is_decided_by_its_own_seed_and_budget():
    requests = [Request((4 + i % 3,), 1 + i % BUDGET, seed) for i, seed in enumerate(range(0, 10**18, 10**16))]
    engine = make_environment(THETA_SA).engine
    together = engine.generate(requests, SamplingParams(), purpose="eval", keep=False)
    alone = [
        engine.generate([request], SamplingParams(), purpose="eval", keep=False)[0] for request in reversed(requests)
    ]
    assert alone[::-1] == together
    assert engine.usage["eval"] == 2 * sum(len(completion.token_ids) for completion in together)
    for request, completion in zip(requests, together, strict=True):
        text = to_text(request.prefix_ids + completion.token_ids)
        assert math.exp(sum(completion.logprobs)) == pytest.approx(WORLD.reach[text])
        assert completion.finish_reason == ("eos" if text[-1] == "=" else "length")
        assert len(completion.token_ids) == request.max_new_tokens or text[-1] == "="
    with pytest.raises(ValueError, match="not with SamplingParams"):
        engine.generate(requests, SamplingParams(temperature=0.5), purpose="eval", keep=False)


def test_responses_come_as_often_as_their_probability_says():
    num = 20_000
    prompt_ids = tuple(make_environment(THETA_SA).tokenizer.encode("4"))
    requests = [Request(prompt_ids, BUDGET, seed) for seed in range(num)]
    completions = make_environment(THETA_SA).engine.generate(requests, SamplingParams(), purpose="eval", keep=False)
    counts = Counter(to_text(prompt_ids + completion.token_ids) for completion in completions)
    common = {s: p for s, p in WORLD.reach.items() if s[0] == "4" and is_over(s) and num * p >= 10}
    common["rest"] = 1 - sum(common.values())
    counts["rest"] = num - sum(counts[s] for s in common if s != "rest")
    chi2 = sum((counts[s] - num * p) ** 2 / (num * p) for s, p in common.items())
    degrees = len(common) - 1
    assert abs(chi2 - degrees) < 4 * math.sqrt(2 * degrees)


def test_new_weights_are_sampled_from():
    engine = make_environment(THETA_SA).engine
    engine.load_weights({"theta": np.tile([0.0, 0.0, 0.0, 50.0], (len(THETA_SA), 1))}, version=3)
    (completion,) = engine.generate([Request((4,), BUDGET, 0)], SamplingParams(), purpose="eval", keep=False)
    assert (to_text(completion.token_ids), completion.policy_version) == ("=", 3)


# Values


def estimates(state: str, num_estimates: int, num_vines: int) -> list[float]:
    """Independent ones: each for a problem of its own."""
    environment = make_environment(THETA_SA)
    prompt_ids, response_ids = (tuple(environment.tokenizer.encode(part)) for part in (state[0], state[1:]))
    states = {
        (str(i), prompt_ids + response_ids): (
            State(Problem(str(i), state[0], state[0]), prompt_ids, response_ids),
            BUDGET - len(response_ids),
        )
        for i in range(num_estimates)
    }
    vineppo = VinePPO(VinePPOConfig(num_vines=num_vines), CreditContext(environment))
    return [estimate.mean for estimate in vineppo.estimate(states, seed=3).values()]


@pytest.mark.parametrize("state", ["3", "4+", "6*-", "4+-+"])
def test_values_are_unbiased_with_variance_p_1_minus_p_over_k(state):
    num, num_vines = 1000, 9
    found, p = estimates(state, num, num_vines), WORLD.value[state]
    assert fmean(found) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / num_vines / num))
    assert variance(found) == pytest.approx(p * (1 - p) / num_vines, rel=4 * math.sqrt(2 / num))


def test_with_many_vines_values_are_exact():
    (found,), p = estimates("4+", 1, 20_000), WORLD.value["4+"]
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
    *("VinePPO K=1", "VinePPO K=9", "VinePPO K=9, unmerged"),
]


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_gradient_is_the_true_one(expected, name):
    assert expected[name] == pytest.approx(TRUE_SA, abs=1e-14)


def test_grpo_counts_itself_in_its_mean_and_scales_prompts_by_their_spread(expected):
    assert expected["GRPO without std"] == pytest.approx(TRUE_SA * (GROUP_SIZE - 1) / GROUP_SIZE, abs=1e-14)
    ratio_PX = (expected["GRPO"] / TRUE_SA).reshape(len(PROMPTS), -1)
    assert np.ptp(ratio_PX, axis=1) == pytest.approx(0, abs=1e-9)  # one factor for each prompt
    assert np.ptp(ratio_PX[:, 0]) > 0.05  # and not the same for all: another objective
    assert ratio_PX.min() > 1


def test_gae_with_a_wrong_critic_and_lambda_0_follows_the_wrong_values(expected):
    critic = KnownCritic(WORLD, CRITIC_ERROR)
    wrong = {s: WORLD.value[s] if is_over(s) else critic.value(s) for s in WORLD.value}
    values_SA = np.zeros_like(TRUE_SA)  # sum_a pi(a|s) Q'(s, a) grad log pi(a|s), in every state
    for state, reach in WORLD.reach.items():
        if not is_over(state):
            probs_A, q_A = WORLD.probs_SA[row(state)], np.array([wrong[state + a] for a in ACTIONS])
            values_SA[row(state)] += reach * probs_A * (q_A - probs_A @ q_A) / len(PROMPTS)
    assert expected["PPO λ=0, wrong critic"] == pytest.approx(values_SA, abs=1e-14)
    assert relative_bias(values_SA) > 0.2
    assert 0.01 < relative_bias(expected["PPO λ=0.95, wrong critic"]) < 0.1


def test_an_end_that_joins_the_segment_before_it_is_biased_by_what_it_mixes(expected):
    """Only the next token tells whether the segment is over: if it is "=", the segment gets the credit of "=", and "="
    that of the segment; no other token would have."""
    start = dict(zip(CUTS, (0, *CUTS), strict=False))
    extra = []
    for text, reach in WORLD.reach.items():
        end = len(text) - 2
        if text[-1] == "=" and end in CUTS:
            before, after = text[: 1 + start[end]], text[:-1]
            of_end, of_segment = WORLD.value[text] - WORLD.value[after], WORLD.value[after] - WORLD.value[before]
            advantages = [0.0] * start[end] + [of_end] * (end - start[end]) + [of_segment]
            extra.append((text, advantages, reach / len(PROMPTS)))
    assert expected["VinePPO K=9, silent end"] - TRUE_SA == pytest.approx(policy_gradient(WORLD, extra), abs=1e-14)
    assert relative_bias(expected["VinePPO K=9, silent end"]) > 0.1


def test_thinning_by_the_number_of_segments_biases(expected):
    assert relative_bias(expected["VinePPO K=9, 2 states"]) > 0.1


def test_ppo_with_exact_values_and_lambda_1_agrees_with_vineppo_on_average_over_what_follows_a_segment():
    ppo, vineppo = METHODS["PPO λ=1, exact critic"], METHODS["VinePPO K=9"]
    totals, masses, by_vines = defaultdict(float), defaultdict(float), {}
    for rollout, p in all_rollouts(WORLD, vineppo.environment):
        for start, end in pairwise(rollout.boundaries):
            segment = full_text(rollout)[: 1 + start], full_text(rollout)[: 1 + end]
            totals[segment] += p * ppo.expected(rollout)[start]
            masses[segment] += p
            by_vines[segment] = vineppo.expected(rollout)[start]
    assert {s: totals[s] / masses[s] for s in totals} == pytest.approx(by_vines, abs=1e-12)


# Gradients, sampled by the program


@pytest.mark.parametrize("name", METHODS)
def test_the_sampled_gradient_has_the_enumerated_mean(sampled, expected, name):
    gradients_NSA = sampled[0][name]
    assert excess(gradients_NSA, expected[name]) < 4


@pytest.mark.parametrize("name", [name for name in METHODS if name != "PPO λ=0, exact critic"])
def test_bias_and_nothing_else_is_found_beside_exact_credit(sampled, expected, name):
    errors_NSA = sampled[0][name] - sampled[1]
    assert excess(errors_NSA, expected[name] - TRUE_SA) < 4
    if relative_bias(expected[name]) > 0.2:  # what is smaller is lost in the noise of so few batches
        assert excess(errors_NSA, 0.0) > 4


def test_exact_identities_of_sampled_gradients(sampled):
    gradients, yardstick_NSA = sampled
    assert gradients["GRPO without std"] == pytest.approx(gradients["RLOO"] * (GROUP_SIZE - 1) / GROUP_SIZE, abs=1e-12)
    assert gradients["PPO λ=0, exact critic"] == pytest.approx(yardstick_NSA, abs=1e-12)


def test_variance_falls_with_vines_and_a_wrong_critic_raises_it(sampled):
    variances = {name: gradients_NSA.var(axis=0).sum() for name, gradients_NSA in sampled[0].items()}
    assert variances["VinePPO K=1"] > variances["VinePPO K=3"] > variances["VinePPO K=9"] > variances["VinePPO K=27"]
    assert variances["PPO λ=1, wrong critic"] > variances["PPO λ=1, exact critic"]
    assert variances["PPO λ=0, exact critic"] < 0.7 * variances["RLOO"]


def test_segment_advantages_add_up():
    method = METHODS["VinePPO K=3"]
    rollouts = [rollout for rollout, _ in all_rollouts(WORLD, method.environment)][::50]
    for rollout, (credit,) in zip(rollouts, method.credit([[rollout] for rollout in rollouts], seed=5), strict=True):
        per_segment = [credit.advantages[start] for start in credit.boundaries[:-1]]
        assert credit.values is not None
        assert math.fsum(per_segment) == pytest.approx(rollout.reward - credit.values[0])


# The command


def test_the_command_prints_tables_and_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["exact", "--batches", "2", "--seed", "3", "--json", str(tmp_path / "exact.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "exact.json").read_text())
    assert [row["name"] for row in result["methods"]] == list(METHODS)
    assert all(row["name"] in printed for row in result["methods"])
    assert max(map(len, printed.splitlines())) <= 100
    assert max(row["gradient_bias_exact"] for row in result["methods"]) < 1


def test_the_seed_decides_everything():
    methods = [METHODS["RLOO"], METHODS["VinePPO K=1"]]
    one, again, other = ([tally.gradients for tally in sample(WORLD, methods, 2, seed)[0]] for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.any(np.all(np.array(one) == other, axis=(1, 2, 3)))


def test_mistakes(tmp_path, capsys):
    assert main(["exact", "--batches", "1"]) == 2
    assert "--batches must be at least 2" in capsys.readouterr().err
    assert main(["exact", "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err
