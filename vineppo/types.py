"""The words of the program: what a rollout is, and what credit is. Who works with them: protocols.py.

Letters used in shapes: P prompts, G group, K vines, S segments, L response tokens, B rows, T positions, V vocabulary.

A wrong response on its way. P0 are the tokens of the prompt; the policy writes A0, an environment E0 (a tool's reply),
the policy A1. docs/tour.md has it record by record, and a test computes it:

    Request     prefix_ids = P0
    Completion  token_ids = A0 + E0 + A1                    1 + 1 + 3 tokens
    Rollout     boundaries = (0, 2, 5)                      segment 0 is A0 + E0, segment 1 is A1
                action_mask = 1 0 1 1 1                     E0 is not the policy's
    Request     prefix_ids = P0, P0 + A0 + E0               the vines: K from each state
    Credit      values = 0.5 0.75 0                         two and three of four vines are correct; R = 0
                advantages = .25 .25 -.75 -.75 -.75
    Sample      at_actions(advantages) = .25 -.75 -.75 -.75
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, get_args

from vineppo.checks import (
    check_alternatives,
    check_boundaries,
    check_finite,
    check_names,
    plain_metrics,
    plain_numbers,
)

FinishReason = Literal["eos", "stop", "length"]
Verdict = Literal["correct", "wrong", "unparseable", "timeout", "crashed"]


class UserError(Exception):
    """A mistake the user can mend. The message is one line and says what to do; the command line exits with code 2."""


class CreditError(ValueError):
    """What an estimator gave is no credit; `credit.common.assign_credit` names the estimator."""


@contextmanager
def checking_credit() -> Iterator[None]:
    """A broken law of credit, or something else where a number should be, becomes a CreditError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CreditError(str(error)) from None


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` is the exact text the policy continues, `answer` the gold answer it is graded against."""

    id: str  # "gsm8k/train/17"
    prompt: str
    answer: str
    solution: str = ""  # worked solution, for SFT; the text that should follow the prompt
    meta: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()  # (role, what it says), where a task is a chat by nature


@dataclass(frozen=True)
class Grade:
    """A graded response: its reward, any finite number, and a verdict, which is counted.

    A task with process rewards gives `segment_rewards` too, one for every piece that `Task.segment` cuts the response
    into, and the reward is their sum. That is one more than there are cuts: the last is earned with the end of the
    response, be it the end alone. A response of two lines, the first of them right:

        task.segment("2+2=4\\n4*3=7")  -> [6]                pieces "2+2=4\\n" and "4*3=7"
        task.grade(problem, ...)        -> Grade(0.5, "wrong", segment_rewards=(0.5, 0.0))
        task.segment("2+2=4\\n4*3=7\\n") -> [6, 12]           three: the last one is the end of the text

    A task whose reward is made of several gives them by name, as they are before any weight, to be logged: a right
    answer without the wanted form, which counts a fifth.

        Grade.weighted({"right": 1.0, "form": 0.0}, {"right": 0.8, "form": 0.2}, "correct").reward  -> 0.8
    """

    reward: float
    verdict: Verdict
    segment_rewards: tuple[float, ...] | None = None  # [S]
    named_rewards: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.reward, str):
            raise ValueError(f"reward must be a number, got {self.reward!r}")
        if not isinstance(self.reward, int | float):  # numpy's and torch's scalars are not all floats
            object.__setattr__(self, "reward", float(self.reward))
        if self.segment_rewards is not None:
            object.__setattr__(self, "segment_rewards", tuple(map(float, self.segment_rewards)))
        object.__setattr__(self, "named_rewards", plain_metrics(self.named_rewards, kind="named reward"))
        check_names(self.named_rewards)
        check_finite("reward", (self.reward,))
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {', '.join(get_args(Verdict))}, got {self.verdict!r}")
        if self.segment_rewards is not None:
            check_finite("segment_rewards", self.segment_rewards)
            if self.reward != math.fsum(self.segment_rewards):
                raise ValueError(
                    f"reward must be math.fsum(segment_rewards), {math.fsum(self.segment_rewards)}, got {self.reward}"
                )

    @classmethod
    def of_segments(cls, segment_rewards: Sequence[float], verdict: Verdict) -> Grade:
        return cls(math.fsum(segment_rewards), verdict, tuple(segment_rewards))

    @classmethod
    def weighted(cls, named_rewards: Mapping[str, float], weights: Mapping[str, float], verdict: Verdict) -> Grade:
        """The reward is the sum of weight x reward; KeyError where one has no weight."""
        reward = math.fsum(weights[name] * reward for name, reward in named_rewards.items())
        return cls(reward, verdict, named_rewards=named_rewards)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. temperature 0 is greedy; top_p 1 and top_k 0 keep the whole vocabulary."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()  # texts that end a completion; the tokens that spell them stay in it
    num_alternatives: int = 0
    """Likeliest tokens to report for every token drawn (`Completion.alternatives`); what is drawn does not change."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature must be a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise UserError(f"top_k must be >= 0 (0 keeps all), got {self.top_k}")
        if any(not text for text in self.stop):
            raise UserError("stop strings must not be empty")
        if self.num_alternatives < 0:
            raise UserError(f"num_alternatives must be >= 0 (0 reports none), got {self.num_alternatives}")


@dataclass(frozen=True)
class Request:
    """One continuation to sample. The state is token ids, never text; the seed alone decides the draw."""

    prefix_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    num_response_tokens: int = 0
    """Tokens at the prefix's end that are of the response already: a stop string may begin in them."""

    def last_response_tokens(self, n: int) -> tuple[int, ...]:
        return self.prefix_ids[len(self.prefix_ids) - min(n, self.num_response_tokens) :]


Alternatives = tuple[tuple[int, float], ...]
"""What might have come: token ids with their log-probabilities, likeliest first."""


@dataclass(frozen=True)
class Completion:
    """What an engine returns: the tokens it drew, an eos token included when that is what ended them."""

    token_ids: tuple[int, ...]  # [L]
    logprobs: tuple[float, ...]  # [L] under the tempered full softmax, before top_p/top_k cut the support
    finish_reason: FinishReason
    policy_version: int
    alternatives: tuple[Alternatives, ...] | None = None
    """[L][<= num_alternatives] at the state before each token, under the distribution that it was drawn from: tempered,
    cut by top_k and top_p, renormalised over what they keep. None where 0 were asked for."""

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.token_ids)} tokens")
        if self.finish_reason not in get_args(FinishReason):
            raise ValueError(f"finish_reason must be one of {get_args(FinishReason)}, got {self.finish_reason!r}")
        if self.alternatives is not None:
            check_alternatives(self.alternatives, len(self.token_ids))


@dataclass(frozen=True)
class Rollout:
    """A graded, segmented completion. Segment j is token_ids[boundaries[j]:boundaries[j + 1]]."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completion: Completion
    text: str  # the response as graded
    reward: float  # of the whole response
    verdict: Verdict
    boundaries: tuple[int, ...]  # [S+1], 0 = b_0 < b_1 < ... < b_S = L
    max_new_tokens: int  # the budget the rollout was sampled under
    segment_rewards: tuple[float, ...] | None = None  # [S], which add up to `reward`; None: all of it at the end
    action_mask: tuple[bool, ...] | None = None  # [L], False on tokens that the environment wrote; None: there are none
    named_rewards: Mapping[str, float] = field(default_factory=dict)  # what `reward` is made of, where a task says so

    def __post_init__(self) -> None:
        num_tokens = len(self.completion.token_ids)
        check_boundaries(self.boundaries, num_tokens)
        check_finite("reward", [self.reward])
        if self.action_mask is not None and len(self.action_mask) != num_tokens:
            raise ValueError(f"action_mask has {len(self.action_mask)} entries for {num_tokens} tokens")
        if self.segment_rewards is not None:
            check_finite("segment_rewards", self.segment_rewards)
            if len(self.segment_rewards) != self.num_segments:
                raise ValueError(f"segment_rewards has {len(self.segment_rewards)} entries for {self.num_segments}")
            if abs(math.fsum(self.segment_rewards) - self.reward) > 1e-6 * max(1.0, abs(self.reward)):
                raise ValueError(f"segment_rewards add up to {math.fsum(self.segment_rewards)}, not {self.reward}")

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.completion.token_ids

    @property
    def num_segments(self) -> int:
        return len(self.boundaries) - 1

    def budget_at(self, boundary: int) -> int:
        """Tokens that the policy had left there."""
        return self.max_new_tokens - num_actions(self.token_ids[:boundary], self.action_mask)

    @property
    def num_actions(self) -> int:
        """Tokens that the policy wrote."""
        return num_actions(self.token_ids, self.action_mask)

    @property
    def is_action(self) -> tuple[bool, ...]:  # [L]
        """Which tokens the policy wrote."""
        return self.action_mask or (True,) * len(self.token_ids)


def mean_named_rewards(responses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over all responses, by name; one that was not graded, and so lacks a reward, has 0 as its reward has."""
    names = sorted({name for named in responses for name in named})
    return {name: fmean(named.get(name, 0.0) for named in responses) for name in names}


def num_actions(token_ids: Sequence[int], action_mask: Sequence[bool] | None) -> int:
    """The mask may be longer than the tokens."""
    return len(token_ids) if action_mask is None else sum(action_mask[: len(token_ids)])


Group = list[Rollout]  # [G], siblings of one prompt


def equal_rewards(group: Group) -> bool:
    """Such a group tells its responses apart in nothing, so comparison within it gives no credit."""
    return len({rollout.reward for rollout in group}) <= 1


@dataclass(frozen=True)
class ValueEstimate:
    """Monte-Carlo value of one state: the rewards of the vines sampled from it."""

    problem_id: str
    prefix_ids: tuple[int, ...]
    rewards: tuple[float, ...]  # [K]
    texts: tuple[str, ...] = ()  # [K] what each vine wrote after the state, to be read; may be left out
    num_truncated: int = 0  # vines that their budget cut off

    @property
    def mean(self) -> float:
        return math.fsum(self.rewards) / len(self.rewards)

    @property
    def standard_error(self) -> float:
        """Of the mean, from the unbiased sample variance; nan for one vine."""
        num_vines = len(self.rewards)
        if num_vines < 2:
            return math.nan
        squares = math.fsum((reward - self.mean) ** 2 for reward in self.rewards)
        return math.sqrt(squares / (num_vines - 1) / num_vines)


@dataclass(frozen=True)
class Credit:
    """The advantage of every response token, checked so that it cannot sit on the wrong ones.

    `values`, where an estimator has them, are V(s_0) .. V(s_S): the return of the whole response as it is expected at
    each boundary, what was earned before it included. So V(s_S) = R, with or without rewards per segment, and an
    estimator of the paper's kind has segment advantages A_j = V(s_{j+1}) - V(s_j) (credit.common.check_telescoping).
    A critic knows a value before every token instead, and learns from targets: `token_values`, `returns`.
    `estimates`, where values were measured, are what V(s_0) .. V(s_{S-1}) are the means of.
    `weights` are for responses that are not all drawn alike, as a tree's are not: what each token counts in the loss,
    entropy and KL included, beside a token of weight 1. They are no part of the advantages.
    """

    boundaries: tuple[int, ...]  # [S+1]
    advantages: tuple[float, ...]  # [L]
    values: tuple[float, ...] | None = None  # [S+1]
    token_values: tuple[float, ...] | None = None  # [L]
    returns: tuple[float, ...] | None = None  # [L]
    estimates: tuple[ValueEstimate, ...] | None = None  # [S]
    weights: tuple[float, ...] | None = None  # [L], None: 1 each

    @checking_credit()
    def __post_init__(self) -> None:
        num_tokens = len(self.advantages)
        check_boundaries(self.boundaries, num_tokens)
        columns = dict.fromkeys(("advantages", "token_values", "returns", "weights"), num_tokens)
        for name, length in (columns | {"values": len(self.boundaries)}).items():
            column = getattr(self, name)
            if column is not None:
                object.__setattr__(self, name, plain_numbers(column))
                check_finite(name, column)
                if len(column) != length:
                    raise ValueError(f"{name} has {len(column)} entries, not {length}")

    @property
    def weighted_advantages(self) -> Sequence[float]:  # [L]
        """What multiplies grad log pi of each token in the policy gradient."""
        if self.weights is None:
            return self.advantages
        return [weight * advantage for weight, advantage in zip(self.weights, self.advantages, strict=True)]

    @property
    def segment_advantages(self) -> list[float]:  # [S]
        """The mean over each segment's tokens, which is each one's where values are measured."""
        return [fmean(self.advantages[a:b]) for a, b in pairwise(self.boundaries)]


@dataclass(frozen=True)
class ExtraRollout:
    """A response to train on beside the groups: a vine, whose `action_mask` leaves out what it shares with its root."""

    rollout: Rollout
    credit: Credit
    weight: float = 1.0
    """What its tokens count in the loss, times their own `credit.weights`; a vine that is one of n continuations of a
    state stands for 1/n of them."""
    root: int = field(kw_only=True)
    """The rollout that it descends from, by its number over all groups: both are in the same minibatches."""

    @checking_credit()
    def __post_init__(self) -> None:
        check_finite("weight", (self.weight,))
        check_length(self.rollout, self.credit, "an extra rollout")


@dataclass(frozen=True)
class Assigned:
    """What an estimator makes of an iteration's groups. Metrics are finite numbers."""

    credits: list[list[Credit]]  # [P][G], like the groups
    metrics: Mapping[str, float]  # `credit/name` and the like
    extra: tuple[ExtraRollout, ...] = ()
    trains_policy: bool = True
    """False while an estimator learns alone, as a critic does that warms up."""

    @checking_credit()
    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", plain_metrics(self.metrics))

    @checking_credit()
    def check(self, groups: Sequence[Group]) -> None:
        """Raises CreditError where the credits are not those of these groups, one for each rollout."""
        if len(self.credits) != len(groups):
            raise CreditError(f"credits for {len(self.credits)} groups, where there are {len(groups)}")
        for p, (group, credits) in enumerate(zip(groups, self.credits, strict=True)):
            if len(credits) != len(group):
                raise CreditError(f"{len(credits)} credits for the {len(group)} rollouts of group {p}")
            for g, (rollout, credit) in enumerate(zip(group, credits, strict=True)):
                if not isinstance(credit, Credit):
                    raise CreditError(f"credits[{p}][{g}] is a {type(credit).__name__}, not a Credit")
                check_length(rollout, credit, f"rollout {g} of group {p}")
        num_rollouts = sum(map(len, groups))
        for i, one in enumerate(self.extra):
            if one.root not in range(num_rollouts):
                raise CreditError(f"extra[{i}].root = {one.root} is none of the {num_rollouts} rollouts")


def check_length(rollout: Rollout, credit: Credit, name: str) -> None:
    if len(credit.advantages) != len(rollout.token_ids):
        raise CreditError(f"{len(credit.advantages)} advantages for the {len(rollout.token_ids)} tokens of {name}")
