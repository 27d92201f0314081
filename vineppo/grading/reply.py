"""What comes of grading one answer, and what a worker process says of it to its parent."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass

from vineppo.parts import explain_error
from vineppo.protocols import Task
from vineppo.types import Grade, Problem, UserError

Pair = tuple[Problem, str]  # and a response to it

READY = b"ready"
"""What a worker sends once it may be given answers."""
MAX_WHY = 400
"""Characters."""
TIME_IS_UP = signal.SIGPROF
"""What the kernel sends a worker that has computed for as long as it may; nothing sleeps through it."""


@dataclass(frozen=True)
class Reply:
    grade: Grade
    why: str = ""
    """What went wrong, of a crash."""
    in_doubt: bool = False
    """Whether a fresh worker may come to another end."""


def crash(why: str, *, in_doubt: bool = False) -> Reply:
    return Reply(Grade(0.0, "crashed"), why, in_doubt)


def grade_with(task: Task, problem: Problem, response: str) -> Reply:
    """Whatever the task does wrong is a crash."""
    try:
        grade = task.grade(problem, response)
        if not isinstance(grade, Grade):
            return crash(f"grade() gave {type(grade).__name__}, not a Grade")
        if grade.segment_rewards is not None:
            num_segments = len(task.segment(response)) + 1
            if len(grade.segment_rewards) != num_segments:
                return crash(f"grade() gave {len(grade.segment_rewards)} segment rewards for {num_segments} segments")
    except MemoryError:  # what came before it has left less room than a fresh worker has
        return crash("out of memory", in_doubt=True)
    except UserError as error:  # which says it all
        return crash(str(error)[:MAX_WHY])
    except (Exception, SystemExit) as error:
        return crash(explain_error(error)[:MAX_WHY])
    return Reply(grade)


def write_reply(reply: Reply) -> bytes:
    """As JSON: a worker has read what a model wrote, so nothing that comes from one is unpickled."""
    grade = reply.grade
    rewards = grade.segment_rewards and [float(reward) for reward in grade.segment_rewards]
    values = {"reward": float(grade.reward), "verdict": grade.verdict, "segment_rewards": rewards}
    values["named_rewards"] = {name: float(reward) for name, reward in grade.named_rewards.items()}
    return json.dumps(values | {"why": reply.why, "in_doubt": reply.in_doubt}).encode()


def read_reply(message: bytes) -> Reply:
    """Raises ValueError where it is none, or its grade breaks a law of grades."""
    try:
        values = json.loads(message)
        rewards = values["segment_rewards"]
        rewards = None if rewards is None else tuple(map(float, rewards))
        named = {name: float(reward) for name, reward in values["named_rewards"].items()}
        grade = Grade(float(values["reward"]), values["verdict"], rewards, named)
        return Reply(grade, str(values["why"]), bool(values["in_doubt"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no reply: {type(error).__name__}: {error}") from None
