"""What an estimator of anybody's gives is credit for these groups, or one line that names the estimator."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from coin_walk import make_environment
from tiny_critic import SAMPLING

from vineppo.credit.common import assign_credit, update_estimator
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.rollouts import sample_groups
from vineppo.types import Assigned, Credit, ExtraRollout, UserError

ENVIRONMENT = make_environment()
GROUPS = sample_groups(ENVIRONMENT, ENVIRONMENT.task.sample(3, seed=1), SAMPLING, seed=2)
LONG, INF = Credit((0, 99), (0.0,) * 99), torch.tensor(torch.inf)


class Odd:
    """RLOO, and then `change` of what it gave."""

    def __init__(self, change: Any):
        self.change = change

    def assign(self, groups: Any, *, seed: int) -> Any:
        return self.change(RLOO(RLOOConfig()).assign(groups, seed=seed))

    def update(self, minibatch: Any) -> Any:
        return self.change(minibatch)

    memory = save = load = update


def odd(change: Any) -> Any:
    return Odd(change)


def put(assigned: Assigned, p: int, group: list[Any]) -> Assigned:
    return replace(assigned, credits=[*assigned.credits[:p], group, *assigned.credits[p + 1 :]])


def first(assigned: Assigned) -> Credit:
    return assigned.credits[0][0]


MISTAKES = {
    "assign() gave a NoneType, not an Assigned": lambda a: None,
    "credits for 2 groups, where there are 3": lambda a: replace(a, credits=a.credits[1:]),
    "3 credits for the 4 rollouts of group 1": lambda a: put(a, 1, a.credits[1][1:]),
    "credits[0][0] is a NoneType, not a Credit": lambda a: put(a, 0, [None, *a.credits[0][1:]]),
    "of rollout 0 of group 0": lambda a: put(a, 0, [LONG, *a.credits[0][1:]]),
    "object of type 'int' has no len()": lambda a: replace(a, credits=[1, 2, 3]),
    "metrics must be a dict of numbers, got NoneType": lambda a: replace(a, metrics=None),
    "metric 'own/loss' must be a finite number, got nan": lambda a: replace(a, metrics={"own/loss": math.nan}),
    "metric 'own/loss' must be a finite number, got inf": lambda a: replace(a, metrics={"own/loss": INF}),
    "metric 'own/loss' must be a number, got a Tensor": lambda a: replace(a, metrics={"own/loss": torch.zeros(2)}),
    "metric 'own/loss' must be a number, got a str": lambda a: replace(a, metrics={"own/loss": "low"}),
    "advantages must be finite": lambda a: replace(first(a), advantages=(math.nan,) * len(first(a).advantages)),
    "extra[0].root = 99 is none of the": lambda a: replace(
        a, extra=(ExtraRollout(GROUPS[0][0], a.credits[0][0], root=99),)
    ),
    "advantages for the": lambda a: ExtraRollout(GROUPS[0][0], LONG, root=0),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_what_is_no_credit_is_one_line_that_names_the_estimator(message):
    with pytest.raises(UserError) as caught:
        assign_credit(Odd(MISTAKES[message]), GROUPS, seed=0)
    assert str(caught.value).startswith("credit estimator Odd: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_of_the_estimators_own_keeps_its_traceback():
    with pytest.raises(ValueError, match="invalid literal"):
        assign_credit(Odd(lambda assigned: int("x")), GROUPS, seed=0)


def test_scalars_of_numpy_and_torch_become_plain_numbers():
    metrics = {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.int64(3), "d": 4}
    assigned = assign_credit(Odd(lambda a: replace(a, metrics=metrics)), GROUPS, seed=0)
    assert json.dumps(assigned.metrics) == '{"a": 0.5, "b": 2.0, "c": 3.0, "d": 4}'
    credit = replace(first(assigned), advantages=tuple(torch.ones(len(first(assigned).advantages))))
    assert json.dumps(credit.advantages) == json.dumps([1.0] * len(credit.advantages))


def test_an_update_says_numbers_and_may_say_that_a_step_was_skipped():
    found = update_estimator(odd(lambda _: {"own/loss": torch.tensor(math.nan), "own/lr": 0.5}), [])
    assert math.isnan(found["own/loss"])
    assert found["own/lr"] == 0.5
    with pytest.raises(UserError, match=r"credit estimator Odd: update\(\): metrics must be a dict"):
        update_estimator(odd(lambda _: None), [])
    with pytest.raises(UserError, match=r"metric 'x' must be a number, got a list"):
        update_estimator(odd(lambda _: {"x": []}), [])
