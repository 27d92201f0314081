from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vineppo.sample import Sample
from vineppo.types import (
    Completion,
    Credit,
    ExtraRollout,
    Grade,
    Problem,
    Request,
    Rollout,
    SamplingParams,
    UserError,
    ValueEstimate,
    mean_named_rewards,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boundaries": (0, 2)}, "from 0 to 3"),
        ({"boundaries": (1, 2, 3)}, "from 0 to 3"),
        ({"boundaries": (0, 2, 2, 3)}, "strictly increasing"),
        ({"advantages": (0.1, 0.1)}, "from 0 to 2"),
        ({"advantages": (0.1, 0.1, math.nan)}, "finite"),
        ({"values": (0.5, 0.6)}, "2 entries, not 3"),
        ({"values": (0.5, 0.6, math.inf)}, "finite"),
        ({"returns": (1.0,)}, "1 entries, not 3"),
    ],
)
def test_credit_cannot_be_misaligned(change, message):
    fields = {"boundaries": (0, 2, 3), "advantages": (0.1, 0.1, -0.6), "values": (0.5, 0.6, 0.0)}
    with pytest.raises(ValueError, match=message):
        Credit(**(fields | change))


def test_sample_columns_are_aligned_to_the_response():
    with pytest.raises(ValueError, match="old_logprobs has 1 entries for 2"):
        Sample((1,), (2, 3), (0.0, 0.0), (0.0, 0.0), old_logprobs=(0.0,))


def make_rollout(**changes: Any) -> Rollout:
    completion = Completion((1, 2, 3), (0.0,) * 3, "eos", 0)
    fields = {"reward": 1.0, "verdict": "correct", "boundaries": (0, 2, 3), "max_new_tokens": 3}
    return Rollout(problem=Problem("p", "", ""), prompt_ids=(0,), completion=completion, text="", **(fields | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": math.nan}, "finite"),
        ({"segment_rewards": (1.0,)}, "1 entries for 2"),
        ({"segment_rewards": (0.5, 0.6)}, "add up to 1.1, not 1"),
        ({"segment_rewards": (math.inf, -math.inf)}, "finite"),
        ({"action_mask": (True, False)}, "2 entries for 3"),
    ],
)
def test_a_rollout_cannot_be_misaligned(change, message):
    with pytest.raises(ValueError, match=message):
        make_rollout(**change)


@pytest.mark.parametrize(("reward", "verdict"), [(1.5, "correct"), (-0.1, "correct"), (0.5, "wrong"), (-1, "crashed")])
def test_a_reward_is_any_finite_number_whatever_the_verdict(reward, verdict):
    assert Grade(reward, verdict).reward == reward


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((math.nan, "correct"), "reward must be finite"),
        ((math.inf, "correct"), "reward must be finite"),
        ((1.0, "right"), "verdict must be one of correct, wrong"),
        ((1.0, "correct", (0.5, 0.25)), "reward must be math.fsum"),
        ((1.0, "correct", ()), "reward must be math.fsum"),
        ((math.inf, "correct", (math.inf,)), "finite"),
    ],
)
def test_grades_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        Grade(*fields)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": math.nan}, "named reward 'a' must be a finite number"),
        ({"a": "one"}, "named reward 'a' must be a number, got a str"),
        ([1.0], "named rewards must be a dict of numbers, got list"),
        ({"a/b": 1.0}, "a name must be 1 to 60 of"),
        ({"": 1.0}, "a name must be"),
        ({1: 1.0}, "a name must be"),
    ],
)
def test_named_rewards_are_checked(named, message):
    with pytest.raises(ValueError, match=message):
        Grade(1.0, "correct", named_rewards=named)


def test_a_weighted_grade_is_the_sum_of_its_rewards():
    grade = Grade.weighted({"right": np.float32(1.0), "form": 0.5}, {"right": 2.0, "form": -1.0, "other": 9.0}, "wrong")  # type: ignore[arg-type]
    assert grade == Grade(1.5, "wrong", named_rewards={"right": 1.0, "form": 0.5})
    assert type(grade.named_rewards["right"]) is float
    with pytest.raises(KeyError):
        Grade.weighted({"right": 1.0}, {}, "wrong")


def test_a_response_without_a_named_reward_has_0_of_it():
    assert mean_named_rewards([{"a": 1.0, "b": 2.0}, {}, {"a": 0.5}, {}]) == {"a": 0.375, "b": 0.5}
    assert mean_named_rewards([{}, {}]) == {}


def test_the_reward_is_the_sum_of_those_of_the_segments():
    rewards = (0.1,) * 10  # whose plain sum is not 1
    assert Grade(1.0, "correct", rewards).segment_rewards == rewards


@pytest.mark.parametrize(
    "change",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"stop": ("",)}, {"num_alternatives": -1}],
)
def test_sampling_params_are_checked(change):
    with pytest.raises(UserError):
        SamplingParams(**change)


def test_value_estimate():
    estimate = ValueEstimate("p", (1,), (1.0, 0.0, 1.0, 1.0))
    assert estimate.mean == 0.75
    assert estimate.standard_error == pytest.approx(math.sqrt(0.25 / 4))
    assert math.isnan(ValueEstimate("p", (1,), (1.0,)).standard_error)


def test_requests_are_values():
    assert Request((1, 2), 3, 4) == Request((1, 2), 3, 4)


def test_a_column_that_is_a_list_is_measured_too():
    with pytest.raises(ValueError, match="advantages has 3 entries for 2"):
        Sample((1,), (2, 3), [0.0] * 3, (0.0, 0.0))  # type: ignore[arg-type]


def test_completions_are_checked():
    with pytest.raises(ValueError, match="1 logprobs for 2 tokens"):
        Completion((1, 2), (0.0,), "eos", 0)
    with pytest.raises(ValueError, match="finish_reason must be one of"):
        Completion((1,), (0.0,), "done", 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alternatives", "message"),
    [
        ((((1, -0.5),),), "alternatives for 1 of 2 tokens"),
        ((((1, -0.5),), ((1, -math.inf),)), r"logprobs of alternatives\[1\] must be finite"),
        ((((1, -2.0), (2, -0.5)), ()), r"alternatives\[0\] must be sorted"),
    ],
)
def test_alternatives_are_one_sorted_list_per_token(alternatives, message):
    assert Completion((1, 2), (0.0, 0.0), "eos", 0, (((2, -0.5), (1, -0.5)), ())).alternatives
    with pytest.raises(ValueError, match=message):
        Completion((1, 2), (0.0, 0.0), "eos", 0, alternatives)


def test_rewards_that_are_numpy_s_become_plain_numbers():
    grade = Grade(np.float32(1.5), "correct", np.array([0.5, 1.0]))  # type: ignore[arg-type]
    assert (type(grade.reward), grade.segment_rewards) == (float, (0.5, 1.0))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_an_extra_rollout_has_a_weight(weight):
    with pytest.raises(ValueError, match="weight must be finite"):
        ExtraRollout(make_rollout(), Credit((0, 2, 3), (0.0,) * 3), weight, root=0)
