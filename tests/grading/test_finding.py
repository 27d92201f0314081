"""What workers say: they arrive as they were sent, and what breaks a law of grades is no finding."""

import json
import random
import struct

import pytest

from vineppo.grading.finding import Finding, grade_with, read_finding, write_finding
from vineppo.types import Grade, Problem

GOOD = {"reward": 1.0, "verdict": "correct", "segment_rewards": None, "named_rewards": {}, "why": "", "in_doubt": False}


class Lines:
    """A task with process rewards: one for each line."""

    def __init__(self, *rewards: float):
        self.rewards = rewards

    def grade(self, problem, response):
        return Grade(sum(self.rewards), "correct", self.rewards)

    def segment(self, response):
        return [i + 1 for i, character in enumerate(response[:-1]) if character == "\n"]


def test_replies_arrive_as_they_were_sent():
    rng = random.Random(0)
    for _ in range(200):
        (reward,) = struct.unpack("d", rng.randbytes(7) + bytes([rng.randrange(0x7F)]))  # any finite number
        named = Finding(Grade(0.0, "wrong", named_rewards={"a": reward, "b-c": 1}))
        strange = Finding(Grade(reward, "correct"), "\x1b\ud800", True)
        for finding in (Finding(Grade(reward, "wrong", (reward,))), named, strange):
            assert read_finding(write_finding(finding)) == finding


@pytest.mark.parametrize(
    "change",
    [
        {"reward": float("nan")}, {"reward": "one"}, {"reward": None}, {"reward": [1]}, {"verdict": "right"},
        {"verdict": ["correct"]}, {"segment_rewards": [0.5]}, {"segment_rewards": 1.0}, {"segment_rewards": ["a"]},
        {"named_rewards": None}, {"named_rewards": [1.0]}, {"named_rewards": {"a": "one"}},
        {"named_rewards": {"a": float("inf")}}, {"named_rewards": {"a/b": 1.0}}, {"named_rewards": {"\x1b": 1.0}},
    ],
)  # fmt: skip
def test_what_breaks_a_law_is_no_reply(change):
    assert read_finding(json.dumps(GOOD).encode()) == Finding(Grade(1.0, "correct"))
    with pytest.raises(ValueError, match=r"^no finding: "):
        read_finding(json.dumps(GOOD | change).encode())


@pytest.mark.parametrize("message", [b"", b"ready", b"[]", b"{}", b"\xff", b"[" * 100_000, b"\x80\x04N."])
def test_other_bytes_are_no_reply(message):
    with pytest.raises(ValueError, match=r"^no finding: "):
        read_finding(message)


@pytest.mark.parametrize(("rewards", "num_lines"), [((1.0,), 2), ((0.5, 0.5), 1), ((1.0, 0.0, 0.0), 2)])
def test_there_is_a_reward_for_every_segment_or_the_task_is_wrong(rewards, num_lines):
    problem = Problem("lines", "", "")
    assert grade_with(Lines(*rewards), problem, "a line\n" * len(rewards)).grade.segment_rewards == rewards  # type: ignore[arg-type]
    finding = grade_with(Lines(*rewards), problem, "a line\n" * num_lines)  # type: ignore[arg-type]
    assert finding.grade == Grade(0.0, "crashed")
    assert finding.why == f"grade() gave {len(rewards)} segment rewards for {num_lines} segments"
