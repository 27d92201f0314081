"""The words of the program: what a rollout is, what credit is, and the protocols the training loop talks to.

Letters used in shapes: P prompts, G group, K vines, S segments, L response tokens, B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import compress, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")

FinishReason = Literal["eos", "stop", "length"]
Verdict = Literal["correct", "wrong", "unparseable", "timeout", "crashed"]


class UserError(Exception):
    """A mistake the user can mend. The message is one line and says what to do; the command line exits with code 2."""


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` is the exact text the policy continues, `answer` the gold answer it is graded against."""

    id: str  # "gsm8k/train/17"
    prompt: str
    answer: str
    solution: str = ""  # worked solution, for SFT; the text that should follow the prompt
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """A graded response. Only the verdict "correct" earns reward; a task may give partial reward in (0, 1]."""

    reward: float
    verdict: Verdict

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"reward must be in [0, 1], got {self.reward}")
        if self.reward > 0 and self.verdict != "correct":
            raise ValueError(f"verdict {self.verdict!r} must have reward 0, got {self.reward}")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. temperature 0 is greedy; top_p 1 and top_k 0 keep the whole vocabulary."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()  # texts that end a completion; the tokens that spell them stay in it

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature must be a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise UserError(f"top_k must be >= 0 (0 keeps all), got {self.top_k}")
        if any(not text for text in self.stop):
            raise UserError("stop strings must not be empty")


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


@dataclass(frozen=True)
class Completion:
    """What an engine returns: the tokens it drew, an eos token included when that is what ended them."""

    token_ids: tuple[int, ...]  # [L]
    logprobs: tuple[float, ...]  # [L] under the tempered full softmax, before top_p/top_k cut the support
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True)
class Rollout:
    """A graded, segmented completion. Segment j is token_ids[boundaries[j]:boundaries[j + 1]]."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completion: Completion
    text: str  # the response as graded
    reward: float
    verdict: Verdict
    boundaries: tuple[int, ...]  # [S+1], 0 = b_0 < b_1 < ... < b_S = L
    max_new_tokens: int  # the budget the rollout was sampled under

    def __post_init__(self) -> None:
        check_boundaries(self.boundaries, len(self.completion.token_ids))

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.completion.token_ids

    @property
    def num_segments(self) -> int:
        return len(self.boundaries) - 1


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

    `values`, where an estimator has them, are V(s_0) .. V(s_S) with V(s_S) = R; then the advantage of every token of
    segment j must be values[j + 1] - values[j], so segment advantages sum to R - V(s_0).
    A critic knows a value before every token instead, and learns from targets: `token_values`, `returns`.
    `estimates`, where values were measured, are what V(s_0) .. V(s_{S-1}) are the means of.
    """

    boundaries: tuple[int, ...]  # [S+1]
    advantages: tuple[float, ...]  # [L]
    values: tuple[float, ...] | None = None  # [S+1]
    token_values: tuple[float, ...] | None = None  # [L]
    returns: tuple[float, ...] | None = None  # [L]
    estimates: tuple[ValueEstimate, ...] | None = None  # [S]

    def __post_init__(self) -> None:
        num_tokens = len(self.advantages)
        check_boundaries(self.boundaries, num_tokens)
        check_finite("advantages", self.advantages)
        for name, column in (("token_values", self.token_values), ("returns", self.returns)):
            if column is not None:
                check_finite(name, column)
                if len(column) != num_tokens:
                    raise ValueError(f"{name} has {len(column)} entries for {num_tokens} tokens")
        if self.values is not None:
            check_finite("values", self.values)
            self._check_telescoping(self.values)

    @property
    def segment_advantages(self) -> list[float]:  # [S]
        """The mean over each segment's tokens, which is each one's where values are measured."""
        return [fmean(self.advantages[a:b]) for a, b in pairwise(self.boundaries)]

    def _check_telescoping(self, values: Sequence[float]) -> None:
        if len(values) != len(self.boundaries):
            raise ValueError(f"values has {len(values)} entries for {len(self.boundaries)} boundaries")
        for j, (start, end) in enumerate(pairwise(self.boundaries)):
            difference = values[j + 1] - values[j]
            if any(abs(advantage - difference) > 1e-6 for advantage in self.advantages[start:end]):
                raise ValueError(
                    f"advantages of segment {j} (tokens {start}..{end - 1}) are not values[{j + 1}] - values[{j}]"
                )


@dataclass(frozen=True)
class Sample:
    """A rollout with its credit, as the learner sees it: every column is aligned to the response.

    A prompt P0 P1, an answer A0 A1, what a tool replied T0, and the rest of the answer A2:

        prompt_ids   P0 P1
        response_ids A0   A1   T0    A2
        action_mask  True True False True     a loss sees A0, A1 and A2 alone
        advantages   0.5  0.5  0.0   -0.2     whatever a column has at T0 is never read
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # [L]
    advantages: tuple[float, ...]  # [L]
    sampling_logprobs: tuple[float, ...]  # [L] from the engine: the mismatch metric, importance weights
    token_values: tuple[float, ...] | None = None  # [L] of a critic, at the start of the iteration
    returns: tuple[float, ...] | None = None  # [L]
    old_logprobs: tuple[float, ...] | None = None  # [L]
    ref_logprobs: tuple[float, ...] | None = None  # [L]
    nucleus_logmass: tuple[float, ...] | None = None  # [L] log of the probability that top_p and top_k keep
    action_mask: tuple[bool, ...] | None = None  # [L] False on tokens that the environment wrote; None: all are actions

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            if (
                name not in ("prompt_ids", "response_ids")
                and column is not None
                and len(column) != len(self.response_ids)
            ):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.response_ids)} response tokens")
        if self.action_mask is not None and not any(self.action_mask):
            raise ValueError("action_mask leaves no token to learn from")

    @property
    def num_actions(self) -> int:
        return len(self.response_ids) if self.action_mask is None else sum(self.action_mask)

    def at_actions(self, column: Sequence[T]) -> Sequence[T]:
        """What a column [L] has at the tokens that the policy wrote."""
        return column if self.action_mask is None else list(compress(column, self.action_mask))


Minibatch = Sequence[Sample] | Sequence[tuple[Sample, ...]]
"""What one optimizer step learns from: samples, or samples that are compared with each other, such as pairs."""


def make_sample(
    prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], action_mask: tuple[bool, ...] | None = None
) -> Sample:
    """A response without credit, as maximum likelihood and scoring take it."""
    nothing = (0.0,) * len(response_ids)
    return Sample(prompt_ids, response_ids, advantages=nothing, sampling_logprobs=nothing, action_mask=action_mask)


def check_boundaries(boundaries: Sequence[int], num_tokens: int) -> None:
    """Segments must partition the response: 0 = b_0 < b_1 < ... < b_S = L with L >= 1."""
    if len(boundaries) < 2 or boundaries[0] != 0 or boundaries[-1] != num_tokens:
        raise ValueError(f"boundaries must run from 0 to {num_tokens}, got {tuple(boundaries)}")
    if any(a >= b for a, b in pairwise(boundaries)):
        raise ValueError(f"boundaries must be strictly increasing, got {tuple(boundaries)}")


def check_finite(name: str, numbers: Sequence[float]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite, got {tuple(numbers)}")


Ended = Callable[[int, Completion], None]


class Engine(Protocol):
    """Samples continuations in batches; owns scheduling, batching and prefix sharing."""

    usage: Counter[str]
    """Generated tokens by purpose: policy, vine, eval, reference."""

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, *, purpose: str, ended: Ended | None = None
    ) -> list[Completion]:
        """One completion per request, in the order of the requests.

        `ended(i, completion)` may be called for request i as soon as its completion is there, while others are still
        being sampled: once at most, in any order, from any thread, one call at a time.
        """
        ...

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raises UserError where `generate` would refuse them; samples nothing."""
        ...

    def load_weights(self, state_dict: Mapping[str, Any], *, version: int) -> None:
        """Sample from these weights from now on. Forgets every cached prefix."""
        ...


class Task(Protocol):
    """Problems, where their solutions may be cut into reasoning steps, and who is right."""

    isolate: bool
    """Whether grading may hang or crash, and therefore runs in limited worker processes. Such a task may have a
    method `prepare()`, which a worker calls once, outside the time limit."""

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        """n distinct training problems; the same seed gives the same problems."""
        ...

    def split(self, name: str) -> list[Problem]:
        """A fixed split: "train", "validation" or "test"."""
        ...

    def grade(self, problem: Problem, response: str) -> Grade:
        """Pure; may be called in another process."""
        ...

    def answer(self, response: str) -> str | None:
        """The final answer as written, or None where there is none; what majority voting counts."""
        ...

    def segment(self, response: str) -> list[int]:
        """Character positions, strictly increasing and inside (0, len(response)), at which a new segment begins."""
        ...


class Grading(Protocol):
    """Answers that are graded while others are still being written."""

    def add(self, index: int, pair: tuple[Problem, str]) -> None: ...

    def grades(self) -> dict[int, Grade]:
        """Of all that were added, by index; waits for them."""
        ...


class Grader(Protocol):
    """Grades many responses at once, each distinct one once, whatever a single answer does to its grader."""

    verdicts: Counter[str]

    def grade(self, pairs: Sequence[tuple[Problem, str]]) -> list[Grade]: ...

    def ahead(self) -> AbstractContextManager[Grading]: ...


class CreditEstimator(Protocol):
    """All that differs between methods."""

    @property
    def ready(self) -> bool:
        """Whether the policy should learn from the last `assign`; false while a critic warms up."""
        ...

    def assign(self, groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:
        """Credit for every rollout, [P][G] like the groups."""
        ...

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """Called after every optimizer step of the policy; an estimator that learns fits itself here."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the last `assign` did, as `credit/name` keys."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what it has learnt below a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote."""
        ...


class Learner(Protocol):
    """Owns the policy's parameters and their optimizer. Knows no method: what is minimised is passed in."""

    def score(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with old and reference log-probs, from the training forward at the sampling temperature."""
        ...

    def step(self, minibatch: Minibatch, loss: Callable[..., Any]) -> dict[str, float]:
        """One optimizer step on a `learner.objective.LossFunction`; returns its metrics and the step's."""
        ...

    def weights(self) -> Mapping[str, Any]:
        """Parameters by name, as `Engine.load_weights` takes them."""
        ...

    def save(self, folder: Path) -> None:
        """Writes everything but the weights that the next step depends on below a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote. Raises UserError where it is not this policy's."""
        ...

    def mismatch(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the engine's log-probs are from `score`'s."""
        ...

    def divergence(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the policy is from the reference on these responses; nothing where there is no reference."""
        ...

    def memory(self) -> dict[str, float]:
        """MiB by what they hold, as `memory/name` keys."""
        ...
