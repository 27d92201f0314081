"""A hidden code is guessed from feedback on each place, as in Wordle.

    b-a~c-          the opening, a guess that is made already: = right place, ~ elsewhere, - absent
    add a=d=d-
    ada             nothing is said to the last

A letter is marked as often as the code has it: first where it is in place, then from the left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field, model_validator

from vineppo.config import Config
from vineppo.tasks.games.rules import Played, Start
from vineppo.types import Problem

LETTERS = "abcdefghijklmnopqrstuvwxyz"
RIGHT, ELSEWHERE, ABSENT = "=~-"
MAX_CODES = 10_000
UNREADABLE = " is no guess\n"


class GuessConfig(Config):
    num_letters: int = Field(default=5, ge=2, le=len(LETTERS))
    """Of the alphabet: the first so many."""
    num_places: int = Field(default=3, ge=1, le=8)
    num_tries: int = Field(default=4, ge=1)
    """Guesses that the player has, those that cannot be read included."""

    @model_validator(mode="after")
    def check(self) -> GuessConfig:
        if self.num_letters**self.num_places > MAX_CODES:
            raise ValueError(
                f"num_letters ** num_places must be at most {MAX_CODES}, the codes that are looked through"
            )
        return self


class Guess:
    def __init__(self, config: GuessConfig):
        self.alphabet, self.num_places = LETTERS[: config.num_letters], config.num_places
        self.max_moves = config.num_tries
        self.symbols = (*self.alphabet, RIGHT, ELSEWHERE, ABSENT, " ", "\n", UNREADABLE)

    def start(self, rng: random.Random) -> Start:
        code, opening = self._random_code(rng), self._random_code(rng)
        while opening == code:
            opening = self._random_code(rng)
        return Start(f"{row(code, opening)}\n", code, {"opening": opening})

    def play(self, problem: Problem, actions: Sequence[str]) -> Played:
        guess = self.read(actions[-1])
        if guess is None:
            return Played(UNREADABLE, won=False)
        return Played(f" {row(problem.answer, guess)}\n", won=guess == problem.answer)

    def advise(self, problem: Problem, actions: Sequence[str], rng: random.Random) -> str:
        """A code that agrees with all feedback so far. It knows no more than the player does."""
        guesses = [problem.meta["opening"], *filter(None, map(self.read, actions))]
        rows = [(guess, feedback(problem.answer, guess)) for guess in reversed(guesses)]
        while True:
            code = self._random_code(rng)
            if all(feedback(code, guess) == marks for guess, marks in rows):
                return code

    def blunder(self, problem: Problem, actions: Sequence[str], rng: random.Random) -> str:
        return self._random_code(rng)

    def answer(self, actions: Sequence[str]) -> str | None:
        """The last guess."""
        return next((guess for guess in map(self.read, reversed(actions)) if guess), None)

    def read(self, action: str) -> str | None:
        guess = action.strip()
        return guess if len(guess) == self.num_places and set(guess) <= set(self.alphabet) else None

    def _random_code(self, rng: random.Random) -> str:
        return "".join(rng.choices(self.alphabet, k=self.num_places))


def feedback(code: str, guess: str) -> str:
    """One mark for each place; there are as many marks of a letter, in place or elsewhere, as the code has of it."""
    left = [letter for letter, guessed in zip(code, guess, strict=True) if letter != guessed]
    marks = ""
    for letter, guessed in zip(code, guess, strict=True):
        if letter == guessed:
            marks += RIGHT
        elif guessed in left:
            left.remove(guessed)
            marks += ELSEWHERE
        else:
            marks += ABSENT
    return marks


def row(code: str, guess: str) -> str:
    """A guess with its marks, each behind its letter."""
    return "".join(letter + mark for letter, mark in zip(guess, feedback(code, guess), strict=True))
