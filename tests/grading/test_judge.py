"""A reward model's share of a reward leaves the rest of the grade as the task gave it."""

import pytest

from vineppo.grading import Judge
from vineppo.types import Grade, Problem

GRADES = [
    (Grade(1.0, "correct"), Grade(0.875, "correct")),
    (Grade(0.5, "wrong", (0.5, 0.0)), Grade(0.5, "wrong", (0.375, 0.125))),
    (Grade(1.0, "wrong", named_rewards={"a": 2.0}), Grade(0.875, "wrong", named_rewards={"a": 2.0})),
    (Grade(0.0, "timeout"), Grade(0.0, "timeout")),
]


@pytest.mark.parametrize(("grade", "regraded"), GRADES)
def test_a_quarter_of_the_reward_is_the_models(grade, regraded):
    judge = Judge(lambda pairs: [0.5] * len(pairs), weight=0.25)
    assert judge.regrade([(Problem("p", "", ""), "")], [grade]) == [regraded]
