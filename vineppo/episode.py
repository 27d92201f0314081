"""A continuation on its way: the policy's turn, what the environment replies, the next turn, until it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

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
        self.text = ""
        """Of the whole response so far, as graded."""
        self._num_left, self._seed = budget, seed
        self._completions: list[Completion] = []
        self._replies: list[tuple[int, ...]] = []
        runs = runs_of(state.response_ids, state.action_mask)
        self._num_turns = len(runs) // 2 + 1  # begun
        self._num_in_turn = len(runs[-1]) if len(runs) % 2 else 0

    def request(self) -> Request:
        """The rest of the turn that is to be written."""
        round_ = len(self._completions)
        longest = self._num_left
        if self.limits.max_turn_tokens is not None:
            longest = min(longest, max(1, self.limits.max_turn_tokens - self._num_in_turn))
        seed = derive_seed(self._seed, "turn", round_) if round_ else self._seed
        return Request(self.prefix_ids, longest, seed, num_response_tokens=self._num_in_turn)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return self.state.prefix_ids + self.completion.token_ids if self._completions else self.state.prefix_ids

    def add(self, completion: Completion) -> None:
        self._completions.append(completion)
        self._num_left -= len(completion.token_ids)

    def add_reply(self, token_ids: tuple[int, ...], longest_prefix: int) -> bool:
        """Whether there is room for another turn behind it. If not, the budget has cut the response off."""
        too_many = self.limits.max_turns is not None and self._num_turns >= self.limits.max_turns
        if too_many or self._num_left <= 0 or len(self.prefix_ids) + len(token_ids) > longest_prefix:
            self._completions[-1] = replace(self._completions[-1], finish_reason="length")
            return False
        self._replies.append(token_ids)
        self._num_turns += 1
        self._num_in_turn = 0
        return True

    @property
    def is_cut_off(self) -> bool:
        return self._completions[-1].finish_reason == "length"

    @property
    def completion(self) -> Completion:
        """All of it so far, replies included, whose tokens have log-prob 0 and no alternatives."""
        if not self._replies:
            return self._completions[0]
        last = self._completions[-1]
        token_ids, logprobs, alternatives = [], [], []
        for completion, reply in self._with_replies():
            token_ids += [*completion.token_ids, *reply]
            logprobs += [*completion.logprobs, *[0.0] * len(reply)]
            alternatives += [*(completion.alternatives or ()), *[()] * len(reply)]
        known = last.alternatives is not None
        return Completion(
            tuple(token_ids),
            tuple(logprobs),
            last.finish_reason,
            last.policy_version,
            tuple(alternatives) if known else None,
        )

    @property
    def action_mask(self) -> tuple[bool, ...] | None:
        """Of the completion; None where it is all the policy's."""
        if not self._replies:
            return None
        mask: list[bool] = []
        for completion, reply in self._with_replies():
            mask += [True] * len(completion.token_ids) + [False] * len(reply)
        return tuple(mask)

    def _with_replies(self) -> list[tuple[Completion, tuple[int, ...]]]:
        replies = [*self._replies, *[()] * (len(self._completions) - len(self._replies))]
        return list(zip(self._completions, replies, strict=True))


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
