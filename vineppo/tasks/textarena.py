"""Games for one player of the package textarena (Guertler et al. 2025), as far as they can be replayed.

    [task]
    name = "textarena"
    env = "Mastermind-v0"

A turn of the policy's is one action, as the game's own text asks for it, and the reward is the game's. Problems are
states that a game begins in, told apart by what they hide, too. There are no worked solutions, so no SFT.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vineppo.config import Named
from vineppo.seeding import derive_seed
from vineppo.tasks.arena import arena, check_replays
from vineppo.tasks.drawn_problems import DrawnProblems
from vineppo.tasks.problem_set import containing
from vineppo.transcript import Transcript, actions_of
from vineppo.types import Grade, Problem

WON = 1.0
"""Reward from which a game is won; less is progress."""


class TextArenaConfig(Named):
    name: str = "textarena"
    env: str
    """As textarena.make takes it."""
    prompt_template: Annotated[str, containing("{prompt}")] = "{prompt}\n"
    num_validation: int = Field(default=50, ge=1)
    num_test: int = Field(default=100, ge=1)


class TextArena:
    Config = TextArenaConfig
    isolate = True

    def __init__(self, config: TextArenaConfig):
        self.config = config
        check_replays(config.env)
        self._problems = DrawnProblems(
            f"textarena/{config.env}",
            self._draw,
            num_validation=config.num_validation,
            num_test=config.num_test,
            content=hidden_content,
        )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def prepare(self) -> None:
        arena(self.config.env)

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        played = arena(self.config.env).replay(problem.meta["seed"], transcript.actions)
        return f"\n{played.said[-1]}\n" if played.reward is None else None

    def grade(self, problem: Problem, response: str) -> Grade:
        reward = arena(self.config.env).replay(problem.meta["seed"], actions_of(response)).reward
        if reward is None:
            return Grade(0.0, "unparseable")  # it was not played to its end
        return Grade(reward, "correct" if reward >= WON else "wrong")

    def answer(self, response: str) -> str | None:
        """No game of another is decided by what was played in this one, so there is nothing to vote on."""
        return None

    def segment(self, response: str) -> list[int]:
        """A turn is one step."""
        return []

    def _draw(self, split: str, seed: int) -> Problem:
        seed %= 2**32
        game = arena(self.config.env)
        content = game.content(seed)
        prompt = self.config.prompt_template.replace("{prompt}", game.replay(seed, []).said[0])
        problem_id = f"textarena/{self.config.env}/{split}/{derive_seed(content):016x}"
        return Problem(problem_id, prompt, "", meta={"seed": seed, "content": content})


def hidden_content(problem: Problem) -> str:
    return problem.meta["content"]
