"""A continuation on its way: the policy's turn, what the environment replies, the next turn, until it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby

from vineppo.seeding import derive_seed
from vineppo.types import Completion, Problem, Request


@dataclass(frozen=True)
class State:
    """A problem and how far its response has come, in token ids."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...] = ()
    action_mask: tuple[bool, ...] | None = None  # [L] False on what the environment wrote; None: the policy wrote all

    turn_is_over: bool = False
    """Its last token has ended a turn of the policy's, so the environment is next; it says what becomes of it."""

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """Made once: the K vines of a state share it."""
        return self.prompt_ids + self.response_ids


@dataclass(frozen=True)
class TurnLimits:
    """A turn that is longer, or that would be one too many, ends the response as its token budget would."""

    max_turns: int | None = None
    """Of the policy, in a response."""
    max_turn_tokens: int | None = None


class Episode:
    """What follows a state, of at most `budget` tokens of the policy's."""

    def __init__(self, state: State, budget: int, seed: int, limits: TurnLimits):
        self.state, self.limits = state, limits
        self.response_ids, self.response_mask = state.response_ids, state.action_mask
        """Of the whole response so far, the state's part included."""
        self.text = ""
        """The same, as text."""
        self.said = ""
        """What there is to grade of it."""
        self._num_left, self._seed = budget, seed
        self._parts: list[Completion] = []  # turns of the policy's and, between two of them, what was replied
        runs = runs_of(state.response_ids, state.action_mask)
        self._num_turns = len(runs) // 2 + 1  # begun
        self._num_in_turn = len(runs[-1]) if len(runs) % 2 else 0

    def request(self) -> Request:
        """The rest of the turn that is to be written."""
        num_written = len(self._parts[::2])
        longest = self._num_left
        if self.limits.max_turn_tokens is not None:
            longest = min(longest, max(1, self.limits.max_turn_tokens - self._num_in_turn))
        seed = derive_seed(self._seed, "turn", num_written) if num_written else self._seed
        return Request(self.prefix_ids, longest, seed, num_response_tokens=self._num_in_turn)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return self.state.prompt_ids + self.response_ids if self._parts else self.state.prefix_ids

    def add(self, completion: Completion) -> None:
        self._num_left -= len(completion.token_ids)
        self._append(completion, None)

    def add_reply(self, token_ids: tuple[int, ...], longest_prefix: int) -> bool:
        """Whether there is room for another turn behind it. If not, the budget has cut the response off."""
        too_many = self.limits.max_turns is not None and self._num_turns >= self.limits.max_turns
        if too_many or self._num_left <= 0 or len(self.prefix_ids) + len(token_ids) > longest_prefix:
            self._parts[-1] = replace(self._parts[-1], finish_reason="length")
            return False
        length = len(token_ids)
        reply = Completion(token_ids, (0.0,) * length, "eos", policy_version=0, alternatives=((),) * length)
        self._append(reply, (False,) * length)
        self._num_turns += 1
        self._num_in_turn = 0
        return True

    def _append(self, part: Completion, mask: tuple[bool, ...] | None) -> None:
        self._parts.append(part)
        self.response_mask = join_masks(self.response_ids, self.response_mask, part.token_ids, mask)
        self.response_ids += part.token_ids

    @property
    def is_cut_off(self) -> bool:
        return self._parts[-1].finish_reason == "length"

    @property
    def completion(self) -> Completion:
        """All of it, replies included, whose tokens have log-prob 0 and no alternatives."""
        if len(self._parts) == 1:
            return self._parts[0]
        last = self._parts[-1]
        alternatives = chain.from_iterable(part.alternatives or () for part in self._parts)
        return replace(
            last,
            token_ids=tuple(chain.from_iterable(part.token_ids for part in self._parts)),
            logprobs=tuple(chain.from_iterable(part.logprobs for part in self._parts)),
            alternatives=None if last.alternatives is None else tuple(alternatives),
        )

    @property
    def action_mask(self) -> tuple[bool, ...] | None:
        """Of the completion; None where it is all the policy's."""
        if len(self._parts) == 1 or self.response_mask is None:
            return None
        return self.response_mask[len(self.state.response_ids) :]


def runs_of(token_ids: Sequence[int], mask: Sequence[bool] | None) -> list[tuple[int, ...]]:
    """The tokens of each turn, the policy's first."""
    if mask is None:
        return [tuple(token_ids)] if token_ids else []
    pairs = groupby(zip(mask, token_ids, strict=True), key=lambda pair: pair[0])
    return [tuple(token for _, token in run) for _, run in pairs]


def join_masks(
    before: tuple[int, ...], mask: tuple[bool, ...] | None, after: tuple[int, ...], its_mask: tuple[bool, ...] | None
) -> tuple[bool, ...] | None:
    """Of two pieces of a response, one behind the other."""
    if mask is None and its_mask is None:
        return None
    return (mask or (True,) * len(before)) + (its_mask or (True,) * len(after))
