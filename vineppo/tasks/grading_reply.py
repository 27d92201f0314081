"""What comes of grading one answer, in this process or in another."""

from __future__ import annotations

from dataclasses import dataclass

from vineppo.types import Grade, Problem, Task


@dataclass(frozen=True)
class Reply:
    grade: Grade
    why: str = ""
    """What went wrong, of a crash."""
    in_doubt: bool = False
    """Whether a fresh worker may come to another end."""


def grade_with(task: Task, problem: Problem, response: str) -> Reply:
    """Whatever the task does wrong is a crash."""
    try:
        grade = task.grade(problem, response)
    except MemoryError:  # what came before it has left less room than a fresh worker has
        return Reply(Grade(0.0, "crashed"), "out of memory", in_doubt=True)
    except Exception as error:
        return Reply(Grade(0.0, "crashed"), f"{type(error).__name__}: {error}"[:200])
    if not isinstance(grade, Grade):
        return Reply(Grade(0.0, "crashed"), f"grade() gave {type(grade).__name__}, not a Grade")
    return Reply(grade)
