"""What a task says of one response, its grade or its reply, and how a worker process says that to its parent."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Literal

from vineppo.config import unusable
from vineppo.parts import explain_error
from vineppo.protocols import TakesTurns, Task
from vineppo.transcript import Transcript, actions_of
from vineppo.types import Grade, Problem, UserError

Pair = tuple[Problem, str]  # and a response to it
Wanted = Literal["grade", "reply"]

READY = b"ready"
"""What a worker sends once it may be given answers."""
MAX_WHY = 400
"""Characters."""
TIME_IS_UP = signal.SIGPROF
"""What the kernel sends a worker that has computed for as long as it may; nothing sleeps through it."""


@dataclass(frozen=True)
class Finding:
    grade: Grade
    why: str = ""
    """What went wrong, of a crash."""
    in_doubt: bool = False
    """Whether a fresh worker may come to another end."""


@dataclass(frozen=True)
class Reply:
    text: str | None
    """What the environment says; None where the episode is over."""


def crash(why: str, *, in_doubt: bool = False) -> Finding:
    return Finding(Grade(0.0, "crashed"), why, in_doubt)


def answer(task: Task, problem: Problem, response: str, wanted: Wanted) -> Finding | Reply:
    """Whatever the task does wrong is a crash."""
    try:
        return (grade_with if wanted == "grade" else reply_with)(task, problem, response)
    except MemoryError:  # what came before it has left less room than a fresh worker has
        return crash("out of memory", in_doubt=True)
    except UserError as error:  # which says it all
        return crash(str(error)[:MAX_WHY])
    except (Exception, SystemExit) as error:
        return crash(explain_error(error)[:MAX_WHY])


def grade_with(task: Task, problem: Problem, response: str) -> Finding:
    grade = task.grade(problem, response)
    if not isinstance(grade, Grade):
        return crash(f"grade() gave {type(grade).__name__}, not a Grade")
    if grade.segment_rewards is not None:
        num_segments = sum(len(task.segment(turn)) + 1 for turn in actions_of(response))
        if len(grade.segment_rewards) != num_segments:
            return crash(f"grade() gave {len(grade.segment_rewards)} segment rewards for {num_segments} segments")
    return Finding(grade)


def reply_with(task: Task, problem: Problem, response: str) -> Finding | Reply:
    assert isinstance(task, TakesTurns)
    assert isinstance(response, Transcript)
    text = task.reply(problem, response)
    if text is not None and not (isinstance(text, str) and text):
        return crash(f"reply() gave {text!r}"[:200] + ", neither None nor a text that is not empty")
    if text is not None and unusable(text):
        return crash(f"reply() gave {text[-80:]!r}: half a character or a NUL in it")
    return Reply(text)


def write_finding(finding: Finding | Reply) -> bytes:
    """As JSON: a worker has read what a model wrote, so nothing that comes from one is unpickled."""
    if isinstance(finding, Reply):
        return json.dumps({"reply": finding.text}).encode()
    grade = finding.grade
    rewards = grade.segment_rewards and [float(reward) for reward in grade.segment_rewards]
    values = {"reward": float(grade.reward), "verdict": grade.verdict, "segment_rewards": rewards}
    values["named_rewards"] = {name: float(reward) for name, reward in grade.named_rewards.items()}
    return json.dumps(values | {"why": finding.why, "in_doubt": finding.in_doubt}).encode()


def read_finding(message: bytes) -> Finding | Reply:
    """Raises ValueError where it is none, or its grade breaks a law of grades."""
    try:
        values = json.loads(message)
        if "reply" in values:
            text = values["reply"]
            return Reply(None if text is None else str(text))
        rewards = values["segment_rewards"]
        rewards = None if rewards is None else tuple(map(float, rewards))
        named = {name: float(reward) for name, reward in values["named_rewards"].items()}
        grade = Grade(float(values["reward"]), values["verdict"], rewards, named)
        return Finding(grade, str(values["why"]), bool(values["in_doubt"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no finding: {type(error).__name__}: {error}") from None
