"""Text games in which a mistake can be repaired: the policy moves, the game answers, until it is won or moves run out.

A turn of the policy's is one action, and the game answers it (`vineppo/tasks/games/`, a file each with an example):

    guess      a hidden code is guessed from feedback on each place
    keydoor    a key is fetched and a door opened with it, in a maze

What follows is decided by the problem and the actions alone. An action that is illegal or cannot be read is answered
and costs a move. The worked solutions of training problems are a demonstrator's whose moves are poor, but legal, in a
share of the turns: SFT leaves something that reinforcement learning can find.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Annotated, Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.seeding import derive_seed
from vineppo.tasks.drawn_problems import DrawnProblems
from vineppo.tasks.episodes import play
from vineppo.tasks.games import GAMES
from vineppo.tasks.games.guess import GuessConfig
from vineppo.tasks.games.keydoor import KeyDoorConfig
from vineppo.tasks.games.rules import Rules
from vineppo.tasks.problem_set import containing
from vineppo.transcript import Transcript, actions_of
from vineppo.types import Grade, Problem


class GameConfig(Named):
    name: str = "game"
    game: Literal["guess", "keydoor"] = "guess"
    guess: GuessConfig = GuessConfig()
    keydoor: KeyDoorConfig = KeyDoorConfig()
    prompt_template: Annotated[str, containing("{prompt}")] = "{prompt}"
    """Where a model that knows no game is told the rules."""
    slip_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the demonstrator's moves that are drawn from the legal ones."""
    speed_bonus: float = Field(default=0.0, ge=0, le=1)
    """Of a game that is won: so much times the share of its moves that were not needed, on top of the reward 1."""
    num_validation: int = Field(default=500, ge=1)
    num_test: int = Field(default=500, ge=1)


class Game:
    Config = GameConfig
    isolate = False

    def __init__(self, config: GameConfig):
        self.config = config
        self.rules: Rules = GAMES[config.game](getattr(config, config.game))
        self.symbols = (*self.rules.symbols, *config.prompt_template.replace("{prompt}", ""))
        self._problems = DrawnProblems(
            f"game/{config.game}",
            self._draw,
            num_validation=config.num_validation,
            num_test=config.num_test,
            solve=self._solve,
        )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        actions = transcript.actions
        played = self.rules.play(problem, actions)
        return None if played.won or len(actions) >= self.rules.max_moves else played.reply

    def grade(self, problem: Problem, response: str) -> Grade:
        actions = self._actions(response)
        found = self.rules.answer(actions)
        if found is None:
            return Grade(0.0, "unparseable")
        num_moves = next((n for n in range(1, len(actions) + 1) if self.rules.play(problem, actions[:n]).won), None)
        if num_moves is None:  # a vote may be for moves that do not win
            return Grade(1.0, "correct") if found == problem.answer else Grade(0.0, "wrong")
        return Grade(1.0 + self.config.speed_bonus * (1 - num_moves / self.rules.max_moves), "correct")

    def answer(self, response: str) -> str | None:
        return self.rules.answer(self._actions(response))

    def segment(self, response: str) -> list[int]:
        """A turn is one step."""
        return []

    def _actions(self, response: str) -> tuple[str, ...]:
        return actions_of(response)[: self.rules.max_moves]

    def _draw(self, split: str, seed: int) -> Problem:
        prompt, answer, hidden = self.rules.start(random.Random(seed))
        prompt = self.config.prompt_template.replace("{prompt}", prompt)
        content = derive_seed(prompt, answer, *hidden.values())
        return Problem(f"game/{self.config.game}/{split}/{content:016x}", prompt, answer, meta=hidden)

    def _solve(self, split: str, problem: Problem) -> Problem:
        """Without slips the game is won: where good moves are a matter of luck too, by the first lucky ones."""
        rng = random.Random(derive_seed("demonstrator", problem.id))
        slip_share = self.config.slip_share if split == "train" else 0.0

        def move(actions: Sequence[str]) -> str:
            player = self.rules.blunder if rng.random() < slip_share else self.rules.advise
            return player(problem, actions, rng)

        played = (play(self, problem, move) for _ in count())
        good = (said for said in played if slip_share or self.grade(problem, said).verdict == "correct")
        return replace(problem, solution=next(good))
