"""Rewards by functions of the user's, which say by the names of their parameters what they want to see.

    def form(completions, **columns): ...       # TRL: lists of one, a list of one number back
    def right(completion, answer, info): ...    # verifiers' rubrics: one response, one number back
    def right(response, answer): ...            # the same, for short

What a function may ask for: `completion` or `response`, `prompt`, `answer` (the gold one), `info`, `state` (a dict of
these), and every field of the problem's record by its own name. One that takes `completions` or `prompts` gets all of
it as lists. TRL's `log_extra` and `log_metric` do nothing here. A function may be `async`.

Sources: TRL 1.16, `GRPOTrainer._calculate_rewards`; verifiers 0.1.14, `Rubric._call_individual_reward_func`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vineppo.parts import find_function
from vineppo.types import UserError

LISTS = {"completions", "prompts"}
"""Parameters that say that a function takes many responses at once."""
RESPONSE = {"completion", "response", "state", *LISTS}
MAX_SHOWN = 80
"""Characters of a value that is no reward."""


@dataclass(frozen=True)
class RewardFunction:
    name: str
    function: Callable[..., Any]
    known: frozenset[str]
    """Names of its parameters."""
    needed: frozenset[str]
    takes_all: bool
    """Whether it has `**columns`."""

    @classmethod
    def named(cls, name: str) -> RewardFunction:
        """One that was loaded. Raises UserError where it could not be called by names, or asks for no response."""
        function = find_function(name)
        try:
            parameters = inspect.signature(function.itself).parameters.values()
        except (TypeError, ValueError):
            raise UserError(f"{name}: Python cannot tell its parameters; wrap it in a `def`") from None
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        known = frozenset(p.name for p in by_name)
        if not RESPONSE & known:
            raise UserError(
                f"{name}: its parameters are ({', '.join(map(str, parameters))}), with no response among them; call "
                "one `completions` (a list, as TRL does), `completion` or `response`"
            )
        needed = frozenset(p.name for p in by_name if p.default is p.empty)
        return cls(name, function, known, needed, any(p.kind is p.VAR_KEYWORD for p in parameters))

    def call(self, values: Mapping[str, Any]) -> float | None:
        """The reward; None where one of TRL's kind says that it does not apply.

        Raises UserError for anything but a finite number, and whatever the function raises.
        """
        takes_lists = bool(LISTS & self.known)
        if takes_lists:
            values = {name: [value] for name, value in values.items()}
            values |= {"completions": values["completion"], "prompts": values["prompt"]}
            values |= {"log_extra": log_nothing, "log_metric": log_nothing}
        if missing := sorted(self.needed - values.keys()):
            raise UserError(f"{self.name} wants {', '.join(missing)}; there are {', '.join(sorted(values))}")
        found = self.function(**{name: value for name, value in values.items() if self.takes_all or name in self.known})
        if inspect.isawaitable(found):
            found = asyncio.run(result_of(found))
        return self._only(found) if takes_lists else self._number(found)

    def _only(self, found: Any) -> float | None:
        if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__len__") or len(found) != 1:
            raise UserError(f"{self.name} must give a list of one number for one completion, not {shown(found)}")
        return None if found[0] is None else self._number(found[0])

    def _number(self, found: Any) -> float:
        number = math.nan
        if found is not None and not isinstance(found, str | bytes):
            with suppress(TypeError, ValueError, RuntimeError):  # the last is torch's, for a tensor of several numbers
                number = float(found)
        if not math.isfinite(number):
            raise UserError(f"{self.name} must give a finite number, not {shown(found)}")
        return number


def visible(
    prompt: str, response: str, answer: str, record: Mapping[str, Any], *, messages: bool = False
) -> dict[str, Any]:
    """What a function can ask for; `messages` makes prompt and completion a chat of one message each."""
    own: dict[str, Any] = {"prompt": prompt, "completion": response}
    if messages:
        own = {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": response}],
        }
    info = record.get("info", {})
    state = own | {"answer": answer, "info": info}
    return {"answer": answer, "info": info, **record, **own, "response": response, "state": state}


async def result_of(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def log_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '...'}"
