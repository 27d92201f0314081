"""Will it pay: the arithmetic behind the forecast, its sentence, and what it says before it samples."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vineppo.analysis import forecast
from vineppo.analysis.forecast import Allocation, Forecast
from vineppo.analysis.pays import take_pilots
from vineppo.analysis.rates import UNKNOWN, Rates, read_rates
from vineppo.analysis.verdict import BOUNDS, Case, answer, best_allocation, ratios
from vineppo.credit.advantages import group_advantages
from vineppo.types import UserError


def pilots_of(rewards_PG: np.ndarray) -> Any:
    energies_PG = np.random.default_rng(1).uniform(0.5, 2, size=rewards_PG.shape)
    return [
        SimpleNamespace(group=[SimpleNamespace(reward=r) for r in row], group_energies=energies)
        for row, energies in zip(rewards_PG, energies_PG, strict=True)
    ]


def test_grpo_without_std_is_rloo_in_other_units():
    pilots = pilots_of(np.random.default_rng(0).integers(2, size=(6, 4)).astype(float))
    no_std = forecast.compared(pilots, lambda rewards: group_advantages(rewards, divide_by_std=False))
    assert no_std.squares == pytest.approx(forecast.rloo(pilots).squares)
    assert (forecast.grpo(pilots).squares != no_std.squares).any()


def test_equal_rewards_leave_nothing_and_are_no_error():
    pilots = pilots_of(np.ones((3, 4)))
    for found in (forecast.rloo(pilots), forecast.grpo(pilots), forecast.constant_baseline(pilots)):
        assert not found.squares.any()


def make_case(square: float, exact: float, noise: np.ndarray, costs: np.ndarray, length: float) -> Case:
    one = np.ones(1)

    def free(number: float) -> Forecast:
        return Forecast(number * one, 0 * one, 0 * one)

    forecasts = {"rloo": free(square), BOUNDS[0]: free(exact)}
    return Case(["p"], length * one, forecasts, Allocation(noise[None], costs[None]), UNKNOWN)


def test_no_allocation_is_cheaper_than_the_best_one():
    square, exact, length = 27.0, 7.6, 8.0
    noise, costs = np.array([4.0, 1.0, 2.0]), np.array([8.0, 5.0, 1.0])
    best = best_allocation(make_case(square, exact, noise, costs, length), np.ones(1))

    def cost(k: np.ndarray) -> float:
        return (exact + (noise / k).sum()) * (length + (k * costs).sum()) / (square * length)

    assert cost(np.sqrt(noise * length / (exact * costs))) == pytest.approx(best)
    rng = np.random.default_rng(0)
    assert min(cost(rng.uniform(0.1, 10, size=3)) for _ in range(2000)) >= best


def test_seconds_are_of_what_is_sampled_and_learnt():
    """100 tokens a second sampled, 50 of vines, 0.01 s to learn from one: 3 s for 100 tokens, 5 s with 50 of vines
    that are learnt from as well, of the same variance."""
    rates = Rates(100.0, 50.0, 0.02, None, None, None, None)
    one = np.ones(1)
    base, other = Forecast(2 * one, 0 * one, 0 * one), Forecast(2 * one, 50 * one, 50 * one)
    case = Case(["p"], 100 * one, {"rloo": base, "other": other}, Allocation(one, one), rates)
    found = ratios(case, one)["other"]
    assert found["cost"] == pytest.approx(1.5)
    assert found["cost_in_seconds"] == pytest.approx((1 + 1 + 3) / (1 + 2))


def test_rates_are_read_from_what_a_run_has_written(tmp_path):
    assert read_rates(tmp_path) == UNKNOWN
    metrics = {"iteration": 1, "tokens/policy": 300, "tokens/vine": 100, "rollouts/num": 10, "rollouts/length_mean": 30}
    timings = {"iteration": 1, "seconds/sample": 3.0, "seconds/credit": 4.0, "seconds/score": 1, "seconds/update": 2}
    lines = [metrics, metrics | {"iteration": 2, "tokens/policy": 7, "rollouts/segments_mean": 5.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "timings.jsonl").write_text(json.dumps(timings) + "\n")
    assert read_rates(tmp_path) == Rates(100.0, 25.0, 0.01, 30.0, 5.5, None, None)  # of iterations with both lines


def rows(low: float | None, high: float | None) -> list[dict[str, Any]]:
    made = {"estimator": "tree K=1", "kind": "approximation", "cost": 0.9, "low": low, "high": high}
    critic = {"estimator": "vine_critic", "kind": "range", "cost": None, "low": 0.1, "high": 1.0}
    bounds = [
        {"estimator": n, "kind": "bound", "cost": c, "low": 0.1, "high": 0.5}
        for n, c in zip(BOUNDS, (0.4, 0.3, 0.2), strict=True)
    ]
    return [made, critic, *bounds]


@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [
        (0.8, 0.95, "recommended: tree K=1, which takes 0.90 [0.80, 0.95] times RLOO's tokens"),
        (0.8, 1.1, "recommended: unknown (tree K=1"),
        (1.1, 1.2, "recommended: rloo or grpo, which compare whole responses"),
        (None, None, "recommended: unknown, as there is no interval"),
    ],
)
def test_the_sentence_does_not_say_more_than_the_intervals(low, high, advice):
    positions = [{"segments": "0", "best_k": 0.5}, {"segments": "1", "best_k": 2.0}, {"segments": "2", "best_k": None}]
    sentence = answer(rows(low, high), positions)
    assert sentence.startswith(
        "measured credit can cut the variance here by at most 80% [50%, 90%] (60% [50%, 90%] with V"
    )
    assert advice in sentence
    assert sentence.endswith("; a vine is worth most at segment 1")


def test_an_estimate_below_0_is_no_certainty():
    below = [row | ({"cost": 0.0, "low": 0.0, "high": 0.0} if row["kind"] == "bound" else {}) for row in rows(0.8, 0.9)]
    assert "at most an unknown share" in answer(below, [])
    assert "unknown, as there is no interval" in answer(rows(0.9, 0.9), [])


def test_equal_rewards_have_no_square_by_rounding():
    pilots = pilots_of(np.full((3, 8), 0.7))
    assert forecast.rloo(pilots).squares.tolist() == forecast.grpo(pilots).squares.tolist() == [0.0] * 3


def test_nothing_to_measure_is_said():
    groups: Any = [[SimpleNamespace(num_segments=1)] * 3]
    with pytest.raises(UserError, match="second segment"):
        take_pilots(SimpleNamespace(), groups, SimpleNamespace(), seed=0)  # type: ignore[arg-type]
    nothing = [row | {"cost": None, "low": None, "high": None} for row in rows(0.8, 0.9)]
    assert "nothing to give credit for" in answer(nothing, [])
