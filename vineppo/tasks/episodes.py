"""An episode of a task that takes turns, played without a model: by a demonstrator, a test or a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vineppo.protocols import TakesTurns
from vineppo.transcript import Transcript
from vineppo.types import Problem


def play(task: TakesTurns, problem: Problem, player: Callable[[Sequence[str]], str]) -> Transcript:
    """`player(actions so far)` gives the next action, until the environment replies no more."""
    turns: list[str] = []
    reply: str | None = ""
    while reply is not None:
        turns.append(player(turns[::2]))
        reply = task.reply(problem, Transcript.of(turns))
        turns += [reply] if reply is not None else []
    return Transcript.of(turns)
