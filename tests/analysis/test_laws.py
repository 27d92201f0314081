"""Laws of the numbers: a perfect estimator scores 1, a random one chance, and intervals cover the truth."""

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from coin_walk import CoinWalk, exact_value, height, make_environment
from tiny import METHODS, START, recipe_of

from vineppo.analysis.action_ranking import critic_predictions, draw_choices, ranking
from vineppo.analysis.gradient_variance import inner_products, moments, statistics
from vineppo.analysis.measured import AnalysisConfig, Measured, vine_rewards
from vineppo.analysis.num_vines import advantages, theory
from vineppo.analysis.reference_values import ReferenceValues
from vineppo.analysis.result import over_seeds
from vineppo.analysis.signal_to_noise import AFTER, FIRST_WRONG, RIGHT, kinds_of, signal
from vineppo.analysis.subject import RunCheckpoint, Subject
from vineppo.analysis.value_accuracy import accuracy, ceiling_rows
from vineppo.credit.ppo import PPO, PPOConfig
from vineppo.environment import State
from vineppo.exact.known import KnownCritic
from vineppo.exact.play import make_environment as make_world_environment
from vineppo.exact.worlds import find_world
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from vineppo.types import Problem

DRAW = np.random.default_rng(0)


def estimates(found: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    return {name: numbers["estimate"] for name, numbers in found.items()}


def test_a_perfect_estimator_of_values_has_no_error():
    true = DRAW.uniform(size=60)
    found = estimates(accuracy(true, true, [f"p{i // 3}" for i in range(60)], seed=0))
    assert (found["mae"], found["rmse"], found["bias"]) == (0, 0, 0)
    assert found["correlation"] == pytest.approx(1)
    assert found["within_0.05"] == found["within_0.1"] == found["within_0.2"] == 1


def test_accuracy_is_what_it_says():
    found = estimates(accuracy(np.array([0.5, 0.5, 0.5]), np.array([0.45, 0.2, 0.6]), ["a", "b", "c"], seed=0))
    assert found["mae"] == pytest.approx((0.05 + 0.3 + 0.1) / 3)
    assert found["bias"] == pytest.approx((0.05 + 0.3 - 0.1) / 3)
    assert found["rmse"] == pytest.approx(math.sqrt((0.05**2 + 0.3**2 + 0.1**2) / 3))
    assert found["within_0.05"] == pytest.approx(1 / 3)
    assert found["within_0.1"] == pytest.approx(2 / 3)
    assert found["correlation"] is None  # a constant has none


def test_a_critic_is_ranked_by_the_whole_reward_that_a_step_leads_to():
    """In a world that pays its lines, whose exact critic says what is still to come: together, the exact value."""
    world = find_world("paid-8")
    environment = make_world_environment(world, cuts=lambda text: [i + 1 for i, c in enumerate(text) if c == "\n"])
    sampling = {"prompts_per_iteration": 1, "group_size": 2, "max_new_tokens": world.budget}
    recipe: Any = recipe_of(METHODS["ppo"] | {"name": "paid", "model": START, "sampling": sampling})
    checkpoint = RunCheckpoint(Path("run"), recipe, Path("run/iteration-000001"))
    ppo = PPO(PPOConfig(), critic=cast(Any, KnownCritic(world)))
    config = AnalysisConfig(split="train", num_problems=12, num_actions=2, num_draws=12)
    choices, _ = draw_choices(Subject(checkpoint, environment, None, ppo), config)
    assert len(choices) > 4
    exact = [[world.value(world.text(s.prompt_ids + s.response_ids)) for s in choice.after] for choice in choices]
    assert critic_predictions(ppo, choices) == pytest.approx(np.array(exact))
    assert len({earned for choice in choices for earned in choice.earned}) > 2


def test_perfect_and_random_rankings():
    true = DRAW.permuted(np.tile(np.arange(5) / 5, (4000, 1)), axis=1)
    problems = [f"p{i}" for i in range(4000)]
    perfect = estimates(ranking(true, true, problems, seed=0))
    assert (perfect["top_1"], perfect["pairs"]) == (1, 1)
    assert perfect["above_chance"] == pytest.approx(0.8)
    reverse = estimates(ranking(-true, true, problems, seed=0))
    assert (reverse["top_1"], reverse["pairs"]) == (0, 0)
    random = estimates(ranking(DRAW.uniform(size=true.shape), true, problems, seed=0))
    assert random["top_1"] == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 4000))
    assert random["pairs"] == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    undecided = estimates(ranking(np.zeros_like(true), true, problems, seed=0))
    assert undecided["top_1"] == pytest.approx(0.2)
    assert undecided["pairs"] == 0.5


def test_equal_references_are_no_test_of_an_order():
    true = np.array([[0.5, 0.5, 0.1], [0.3, 0.3, 0.3]])
    found = estimates(ranking(np.array([[0.9, 0.2, 0.5], [0.1, 0.2, 0.3]]), true, ["a", "b"], seed=0))
    assert found["top_1"] == 1  # of the first alone
    assert found["above_chance"] == pytest.approx(1 / 3)
    assert found["pairs"] == pytest.approx(1 / 2)  # (0, 2) rightly, (1, 2) wrongly


def walk_states() -> list[tuple[State, int]]:
    problem = Problem("walk", "x", "up")
    tokenizer = make_environment().tokenizer
    prompt = tuple(tokenizer.encode("x"))
    texts = ["", "u", "d", "uu", "ud", "dd", "uud", "udu"]
    return [(State(problem, prompt, tuple(tokenizer.encode(text))), 12 - len(text)) for text in texts]


def true_values() -> np.ndarray:
    texts = ["", "u", "d", "uu", "ud", "dd", "uud", "udu"]
    return np.array([exact_value(height(text), 12 - len(text)) for text in texts])


def test_reference_values_approach_the_exact_ones(tmp_path):
    environment = make_environment()
    states = walk_states()
    references = ReferenceValues(tmp_path, "weights", environment, 2000, seed=0)
    values = references.values([s for s, _ in states], [b for _, b in states])
    p = true_values()
    assert np.abs(values - p).max() < 4 * np.sqrt(p * (1 - p) / 2000).max()


def test_k_vines_err_as_theory_says():
    """8 states, 400 independent draws of K = 9 each: the mean square has a relative standard error of about 3 %."""
    subject: Any = SimpleNamespace(environment=make_environment())
    p = true_values()
    errors = [vine_rewards(subject, walk_states(), 9, seed=seed).mean(axis=1) - p for seed in range(400)]
    expected = p * (1 - p) / 9
    assert np.mean(np.square(errors)) == pytest.approx(expected.mean(), rel=0.1)
    assert np.mean(errors, axis=0) == pytest.approx(0, abs=4 * math.sqrt(expected.max() / 400))
    exact_reference = theory(p, 9, 10**9)
    assert exact_reference == pytest.approx(math.sqrt(expected.mean()))


def test_references_are_measured_once_and_survive_a_torn_line(tmp_path):
    states = walk_states()
    asked = [s for s, _ in states], [b for _, b in states]
    first = make_environment()
    values = ReferenceValues(tmp_path, "weights", first, 16, seed=0).values(*asked)
    assert first.engine.usage["reference"] > 0
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-5])
    again = make_environment()
    assert ReferenceValues(tmp_path, "weights", again, 16, seed=0).values(*asked) == values
    assert 0 < again.engine.usage["reference"] < first.engine.usage["reference"]  # the torn one alone
    third = make_environment()
    assert ReferenceValues(tmp_path, "weights", third, 16, seed=0).values(*asked) == values
    assert third.engine.usage["reference"] == 0
    ReferenceValues(tmp_path, "other weights", third, 16, seed=0).values(*asked)
    assert third.engine.usage["reference"] == first.engine.usage["reference"]


def test_predictions_share_no_draw_with_references(tmp_path):
    """Else a K-vine value would be judged by itself; here both have 9 vines and would be equal."""
    environment = make_environment(CoinWalk(partial=True))
    states = walk_states()
    subject: Any = SimpleNamespace(environment=environment)
    references = ReferenceValues(tmp_path, "weights", environment, 9, seed=0)
    reference = references.values([s for s, _ in states], [b for _, b in states])
    assert not np.allclose(vine_rewards(subject, states, 9, seed=0).mean(axis=1), reference)


def test_advantages_of_values_add_up_within_each_response():
    measured = Measured([], np.array([]), np.array([]), {}, np.array([0, 0, 0, 1, 1]), np.array([1.0, 1, 1, 0, 0]))
    values = np.array([0.5, 0.6, 0.9, 0.3, 0.2])
    assert advantages(values, measured) == pytest.approx([0.1, 0.3, 0.1, -0.1, -0.2])


def test_noise_and_signal_of_gradients_are_the_unbiased_ones():
    gradients = DRAW.normal(size=(12, 7)) + 2
    found = statistics(gradients @ gradients.T, np.arange(12))
    trace = np.trace(np.cov(gradients.T))
    assert found["covariance_trace"] == pytest.approx(trace)
    assert found["squared_mean"] == pytest.approx(gradients.mean(axis=0) @ gradients.mean(axis=0) - trace / 12)
    assert found["normalized_variance"] == pytest.approx(found["covariance_trace"] / found["squared_mean"])


def test_signal_to_noise_of_known_numbers():
    found = estimates(signal(np.array([1.0, 1.0, 0.0, -1.0]), 1, 500, ["a", "b", "c", "d"], seed=0))
    assert found["mean"] == pytest.approx(0.25)
    assert found["snr"] == pytest.approx(0.25 / np.std([1, 1, 0, -1]))
    assert found["snr2_per_1000_tokens"] == pytest.approx(2 * (0.25 / np.std([1, 1, 0, -1])) ** 2)
    assert found["right_sign"] == pytest.approx((1 + 1 + 0.5) / 4)


def test_segments_are_judged_by_what_they_carry_on_from():
    task = Arithmetic(ArithmeticConfig(num_steps=(3, 3)))
    problem = Problem("p", "9 a+3 b*7 c-4\n", "0")

    def judge(*segments: str) -> list[bool]:
        return task.judge_segments(problem, segments)

    assert judge("9 a+3=2\n", "2 b*7=4\n", "4 c-4=0\n", "#### 0") == [True, True, True, True]
    assert judge("9 a+3=1\n", "1 b*7=7\n", "7 c-4=3\n", "#### 3") == [False, True, True, True]
    assert judge("9 a+3=2\n", "3 b*7=1\n", "1 c-4=7\n", "#### 7") == [True, False, True, True]  # carried wrongly
    assert judge("9 a+3=2\n", "2 b*7=\n", "2 c-4=8\n", "#### 8") == [True, False, True, True]
    assert judge("9 a+3=2\n", "\n2 b*7=4\n", "4 c-4=0\n", "#### 0\n", "") == [True, True, True, True, True]
    assert judge("9 a+3=2\n", "2 b*7=4\n", "4 c-4=0\n", "#### 5") == [True, True, True, False]  # another answer
    assert judge("9 a+3=2\n", "2 b*7=4\n", "4 c-4=0\n", "") == [True, True, True, False]  # none, and the text ends
    assert judge("9 a+3=2\n", "2 b*7=4\n", "4 c-4=0") == [True, True, True]  # cut off
    assert judge("9 a+3=2\n", "#### 2") == [True, False]  # too early
    assert judge("9 a+3=2\n", "2 b*7=4\n", "4 c-4=0\n", "#### 0\n", "#### 0") == [True, True, True, True, False]
    assert judge("") == [False]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_worked_solutions_are_right_all_along(split):
    task = Arithmetic(ArithmeticConfig(num_steps=(1, 5)))
    for problem in task.split(split)[:30]:
        cuts = [0, *task.segment(problem.solution), len(problem.solution)]
        segments = [problem.solution[a:b] for a, b in pairwise(cuts)]
        assert all(task.judge_segments(problem, segments))


def test_after_the_first_wrong_step_nothing_counts_as_right():
    assert kinds_of([True, True, True]) == [RIGHT, RIGHT, RIGHT]
    assert kinds_of([True, False, True]) == [RIGHT, FIRST_WRONG, AFTER]
    assert kinds_of([False, False]) == [FIRST_WRONG, AFTER]


def test_what_a_perfect_estimator_seems_to_score():
    """Against 4,000 simulated references per value."""
    p = np.array([0.5, 0.1, 0.9])
    measured = Measured(["p"] * 3, p, p, {}, np.zeros(3), p)
    checkpoint: Any = SimpleNamespace(header={})
    found = {row["measure"]: row["estimate"] for row in ceiling_rows(checkpoint, measured, 128)}
    references = DRAW.binomial(128, p, size=(4000, 3)) / 128
    for x in (0.05, 0.1):
        assert found[f"within_{x:g}"] == pytest.approx((np.abs(references - p) <= x + 1e-9).mean(), abs=0.015)
    assert found["rmse"] == pytest.approx(np.sqrt(((references - p) ** 2).mean()), rel=0.03)


def test_a_gradient_that_may_be_zero_has_no_normalized_variance():
    noise = DRAW.normal(size=(16, 500))
    found = moments(noise @ noise.T, seed=0)
    assert found["normalized_variance"] == {"estimate": None, "low": found["normalized_variance"]["low"], "high": None}
    clear = noise + 10
    known = moments(clear @ clear.T, seed=0)["normalized_variance"]
    assert known["estimate"] == pytest.approx(0.01, rel=0.2)
    assert known["high"] is not None


def test_inner_products_do_not_depend_on_slices(monkeypatch):
    gradients = [row.astype(np.float32) for row in DRAW.normal(size=(5, 103))]
    whole = inner_products(gradients)
    monkeypatch.setattr("vineppo.analysis.gradient_variance.SLICE", 10)
    assert inner_products(gradients) == pytest.approx(whole)
    assert whole == pytest.approx(np.stack(gradients) @ np.stack(gradients).T, rel=1e-4)


def test_means_over_seeds_have_student_s_interval_and_one_run_keeps_its_own():
    rows = [{"method": "a", "x": value, "low": 0.0, "high": 1.0} for value in (0.2, 0.4)]
    rows.append({"method": "b", "x": 0.7, "low": 0.6, "high": 0.8})
    a, b = over_seeds(rows, ("method",), "x")
    assert a["x"] == pytest.approx(0.3)
    assert a["high"] - a["x"] == pytest.approx(12.7062047 * 0.1)
    assert (b["x"], b["low"], b["high"]) == (0.7, 0.6, 0.8)
