"""The protocols between the rooms: what an engine, a task, an estimator and a learner must do, whoever makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vineppo.sample import Minibatch, Sample
from vineppo.transcript import Transcript
from vineppo.types import Assigned, Completion, Grade, Group, Problem, Request, Rollout, SamplingParams

OnComplete = Callable[[int, Completion], None]


class Engine(Protocol):
    """Samples continuations in batches; owns scheduling, batching and prefix sharing."""

    usage: Counter[str]
    """Generated tokens by purpose: policy, vine, eval, reference."""

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        """One completion per request, in the order of the requests.

        `keep` says that later requests may extend these completions, until new weights come: a rollout's, which vines
        start from. What was computed for them is then worth its memory. It changes no completion.
        `on_complete(i, completion)` may be called for request i as soon as its completion is there, while others are
        still being sampled: once at most, in any order, from any thread, one call at a time.
        """
        ...

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raises UserError where `generate` would refuse them; samples nothing."""
        ...

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        """Samples from these weights from now on and forgets every cached prefix.

        Completions carry the `version` that they were drawn with; it is 0 before the first call.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """Problems, where their solutions may be cut into reasoning steps, and how good a response is.

    `TakesTurns`, `HasSymbols`, `Prepares` and `JudgesSegments` below are what a task may have besides.
    """

    isolate: bool
    """Whether grading may hang or crash, and therefore runs in limited worker processes."""

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        """n distinct training problems; the same seed gives the same problems."""
        ...

    def split(self, name: str) -> list[Problem]:
        """A fixed split: "train", "validation" or "test"."""
        ...

    def grade(self, problem: Problem, response: str) -> Grade:
        """Pure; may be called in another process. The response is without special tokens, up to a stop string."""
        ...

    def answer(self, response: str) -> str | None:
        """The final answer as written, or None where there is none; what majority voting counts."""
        ...

    def segment(self, response: str) -> list[int]:
        """Character positions, strictly increasing and inside (0, len(response)], at which a new segment begins.

        They are stopping times: segment(text[:n]) == [c for c in segment(text) if c <= n] for every n. Whether a
        segment ends at a place is decided by the text before it, never by what follows, or VinePPO's policy gradient
        is biased (docs/methods.md, "Segments"). A cut at len(response) says that whatever comes next, even an end of
        text alone, is a segment of its own.
        """
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """A task in which an environment answers the policy: a tool, a game, a website.

    A turn of the policy's ends with eos or a stop string. `grade` and `answer` get a Transcript, and so is a worked
    `Problem.solution` of more than one turn. `segment` is asked for each turn of the policy's by itself; every turn
    begins a segment.
    """

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        """What the environment says to the policy's last turn; None where the episode is over.

        It follows from the problem and the transcript alone, whichever process asks: a vine may start in any turn, and
        asks again. Not empty. With `isolate` it is asked in the processes that grade.
        """
        ...


@runtime_checkable
class HasSymbols(Protocol):
    """A task that lists the texts all its problems are made of, so that a model from scratch has a token for each."""

    symbols: Sequence[str]


@runtime_checkable
class Prepares(Protocol):
    """A task whose grading needs something large first. Each grading process calls `prepare` once, before any limit."""

    def prepare(self) -> None: ...


@runtime_checkable
class JudgesSegments(Protocol):
    """A task that knows which steps of a response are right; the analysis signal_to_noise needs one."""

    def judge_segments(self, problem: Problem, segments: Sequence[str]) -> list[bool]:
        """Whether each segment is a right step, given those before it."""
        ...


class CreditEstimator(Protocol):
    """All that differs between methods."""

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        """Credit for every rollout. The same groups and the same seed give the same credit."""
        ...


@runtime_checkable
class LearningEstimator(CreditEstimator, Protocol):
    """An estimator that learns, as PPO's critic does: it is updated with the policy and is part of every checkpoint."""

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """Called after every optimizer step of the policy; returns metrics."""
        ...

    def memory(self) -> dict[str, float]:
        """MiB by what they hold, as `memory/name` keys."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what it has learnt below a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote."""
        ...


class ActionCritic(Protocol):
    """Guesses the reward after each of the likeliest next tokens. It is frozen while it judges, and learns after."""

    def action_values(self, rollouts: Sequence[Rollout]) -> list[Any]:
        """A numpy array [L, M] for each: q of the alternatives of every response token, padded as
        `alternatives.alternatives_table` pads them."""
        ...

    def learn(self, rollouts: Sequence[Rollout], *, seed: int) -> dict[str, float]:
        """From the rewards of these responses, which it has judged already; returns metrics."""
        ...

    def memory(self) -> dict[str, float]:
        """MiB by what they hold, as `memory/name` keys."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what it has learnt into a folder of its own."""
        ...

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote. Raises UserError where it is another critic's."""
        ...


class Trainable(Protocol):
    """A model and its optimizer, which go on from a checkpoint."""

    def save(self, folder: Path) -> None:
        """Writes everything but the weights that the next step depends on below a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote. Raises UserError where it is not this model's."""
        ...

    def memory(self) -> dict[str, float]:
        """MiB by what they hold, as `memory/name` keys."""
        ...


class Learner(Trainable, Protocol):
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

    def mismatch(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the engine's log-probs are from `score`'s."""
        ...

    def divergence(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the policy is from the reference on these responses; nothing where there is no reference."""
        ...
