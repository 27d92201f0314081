"""Games of the package textarena, replayed: the same seed and the same actions give the same game, or it is refused.

textarena's games keep their state in Python objects and draw from `random`, and a vine may start in any turn, in any
process. So the state is what has been done: a game is reset with its seed and fed all actions again.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, cached_property
from typing import Any, NamedTuple

from vineppo.seeding import derive_seed
from vineppo.tasks.global_generators import seeded
from vineppo.types import UserError

HINT = re.compile(r"\[[^\[\]\n]{1,20}\]")
COMMON = ("[up]", "[left]", "[0]", "[1]", "[2 3]", "[a]", "[hit]", "[stand]", "something else")
"""Actions that are tried beside those that a game's own texts mention."""
NUM_TRIES, NUM_ACTIONS = 4, 12
"""Games that are played twice before one is trusted, and actions in each."""


class Replayed(NamedTuple):
    said: tuple[str, ...]
    """What the game says at first and after each action until it is over."""
    reward: float | None
    """None while it goes on."""
    start: str
    """The state that it began with."""


class Arena:
    """One environment, which every replay resets."""

    def __init__(self, env_id: str):
        self.env_id = env_id
        with contained(0):
            self._env = import_textarena().make(env_id)

    def replay(self, seed: int, actions: Sequence[str]) -> Replayed:
        with contained(seed):
            self._env.reset(num_players=1, seed=seed)
            if not isinstance(self._env.state, import_textarena().SinglePlayerState):
                raise AssertionError("it keeps no state of a single player")
            start, said, over = repr(self._env.state.game_state), [self._news()], False
            for action in actions:
                if over:
                    break
                over, _ = self._env.step(action.strip())
                said.append(self._news())
            return Replayed(tuple(said), float(self._env.state.rewards[0]) if over else None, start)

    def content(self, seed: int) -> str:
        """What tells the game of one seed from others, hidden or not: the state that it begins with. Where all begin
        alike, it is what is drawn later, as far as first actions show it."""
        start = self.replay(seed, [])
        if not self._begins_alike:
            return start.start
        return "\n".join(self.replay(seed, [action]).said[-1] for action in hints(start.said[0]))

    @cached_property
    def _begins_alike(self) -> bool:
        return len({self.replay(seed, []).start for seed in range(NUM_TRIES)}) == 1

    def _news(self) -> str:
        """What the player has not seen, but for the own action, which it wrote. Some games mix up sender and text of
        that one, which is no text then."""
        own = import_textarena().ObservationType.PLAYER_ACTION
        messages = self._env.state.get_current_player_observation()
        return "\n".join(text.strip() for _, text, kind in messages if isinstance(text, str) and kind != own)


@cache
def arena(env_id: str) -> Arena:
    """Raises UserError where there is no such environment, or it cannot be made here."""
    textarena = import_textarena()
    known = textarena.envs.registration.ENV_REGISTRY
    if env_id not in known:
        raise UserError(f"task.env = {env_id!r}: textarena {textarena.__version__} has no such environment")
    try:
        return Arena(env_id)
    except Exception as error:
        raise refusal(env_id, f"cannot be made: {in_a_line(error)}") from None


def check_replays(env_id: str) -> None:
    """Raises UserError where a game needs other players, or two replays of it differ."""
    used = arena(env_id)
    try:
        for number in range(NUM_TRIES):
            seed = derive_seed("replay", number) % 2**32
            actions = random.Random(seed).choices(hints(used.replay(seed, []).said[0]), k=NUM_ACTIONS)
            if used.replay(seed, actions) != Arena(env_id).replay(seed, actions):
                raise refusal(env_id, "does not replay: the same seed and actions gave two games")
    except AssertionError as error:
        raise refusal(env_id, f"is no game for one player ({in_a_line(error)})") from None
    except UserError:
        raise
    except Exception as error:
        raise refusal(env_id, f"fails: {in_a_line(error)}") from None


def hints(said: str) -> list[str]:
    """Actions to try a game with: those in brackets that its text mentions, and common ones."""
    return sorted({*HINT.findall(said), *COMMON})


@contextmanager
def contained(seed: int) -> Iterator[None]:
    """Games draw from common generators, and some print."""
    with seeded(seed), redirect_stdout(io.StringIO()):
        yield


def import_textarena() -> Any:
    try:
        import textarena
    except ModuleNotFoundError:
        raise UserError('task textarena needs the package textarena: pip install "vineppo[textarena]"') from None
    return textarena


def refusal(env_id: str, why: str) -> UserError:
    return UserError(f"task.env = {env_id!r} {why}; docs/textarena.md says which games replay")


def in_a_line(error: Exception) -> str:
    text = re.sub(r"\*{3,}", "", str(error))  # nltk's frames
    return f"{type(error).__name__}: {' '.join(text.split())[:160]}"
