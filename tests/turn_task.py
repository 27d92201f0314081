"""A game in turns: the policy guesses a digit, the environment says whether the hidden one is higher or lower."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

from vineppo.config import Named
from vineppo.segments import cut_lines
from vineppo.transcript import Transcript, actions_of, turns_of
from vineppo.types import Grade, Problem, UserError

MAX_GUESSES = 3


class GuessConfig(Named):
    num_test: int = 8
    isolate: bool = False


class Guess:
    """Prompts are a range such as "2-6?"; a turn is one guess, and whatever else is written with it."""

    Config = GuessConfig
    symbols = (*"0123456789", "-", "?", "<", ">", "\n")

    def __init__(self, config: GuessConfig):
        self.config, self.isolate = config, config.isolate
        problems = [
            Problem(f"guess/{low}-{high}/{hidden}", f"{low}-{high}?\n", str(hidden), solution(low, high, hidden))
            for low in range(6)
            for high in range(low + 2, min(low + 5, 10))
            for hidden in range(low, high + 1)
        ]
        random.Random(0).shuffle(problems)
        self._splits = {"test": problems[: config.num_test], "train": problems[config.num_test :]}

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return random.Random(seed).sample(self._splits["train"], n)

    def split(self, name: str) -> list[Problem]:
        if name not in self._splits:
            raise UserError(f"guess has no split {name!r}; it has train and test")
        return self._splits[name]

    def segment(self, response: str) -> list[int]:
        return cut_lines(response)

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        guess, hidden = transcript.actions[-1].strip(), problem.answer
        if guess == hidden or len(transcript.actions) == MAX_GUESSES:
            return None
        return ">" if guess < hidden else "<"

    def answer(self, response: str) -> str | None:
        return turns_of(response)[-1].strip() or None

    def grade(self, problem: Problem, response: str) -> Grade:
        answer = self.answer(response)
        if answer is None:
            return Grade(0.0, "unparseable")
        return Grade(1.0, "correct") if answer == problem.answer else Grade(0.0, "wrong")


def solution(low: int, high: int, hidden: int) -> Transcript:
    turns: list[str] = []
    while True:
        guess = (low + high) // 2
        turns.append(str(guess))
        if guess == hidden:
            return Transcript.of(turns)
        turns.append(">" if guess < hidden else "<")
        low, high = (guess + 1, high) if guess < hidden else (low, guess - 1)


class OneTurn(Guess):
    """The same without an environment that speaks."""

    def __init__(self, config: GuessConfig):
        super().__init__(config)
        known = self._splits.items()
        self._splits = {name: [replace(p, solution=p.answer) for p in problems] for name, problems in known}

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        return None


class NoTurns:
    """The same again, without `reply`."""

    Config = GuessConfig
    symbols = Guess.symbols

    def __init__(self, config: GuessConfig):
        game = OneTurn(config)
        self.isolate = game.isolate
        self.sample, self.split, self.segment = game.sample, game.split, game.segment
        self.answer, self.grade = game.answer, game.grade


class Steps(Guess):
    """Process rewards: a tenth for every line that is a digit."""

    def grade(self, problem: Problem, response: str) -> Grade:
        pieces = [piece for turn in actions_of(response) for piece in self.pieces(turn)]
        return Grade.of_segments([0.1 * piece.strip().isdigit() for piece in pieces], "wrong")

    def pieces(self, turn: str) -> list[str]:
        cuts = [0, *self.segment(turn), len(turn)]
        return [turn[a:b] for a, b in pairwise(cuts)]
