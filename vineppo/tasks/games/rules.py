"""What a game is to the task `game`: where it begins, and what follows from the player's actions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from vineppo.types import Problem


class Start(NamedTuple):
    """A game before its first move: what the player reads, what wins, and what is hidden beside it."""

    prompt: str
    answer: str
    hidden: Mapping[str, str]


class Played(NamedTuple):
    reply: str
    """What the last action is answered with."""
    won: bool


class Rules(Protocol):
    """One game. Everything but `start` is a function of the problem and the actions alone."""

    max_moves: int
    symbols: tuple[str, ...]

    def start(self, rng: random.Random) -> Start: ...

    def play(self, problem: Problem, actions: Sequence[str]) -> Played:
        """After all these actions, at least one and at most `max_moves`, none of which but the last may have won."""
        ...

    def advise(self, problem: Problem, actions: Sequence[str], rng: random.Random) -> str:
        """A good next action."""
        ...

    def blunder(self, problem: Problem, actions: Sequence[str], rng: random.Random) -> str:
        """A legal next action that may be a poor one."""
        ...

    def answer(self, actions: Sequence[str]) -> str | None:
        """What these actions come to, written as `Problem.answer` is; None where no action can be read."""
        ...
