"""The language environment: start the policy in any token state, let it finish, grade what it wrote.

A text can be reset to any intermediate state, which is all that VinePPO asks of an environment (paper, section 4).
Rollouts start at the prompt, vines in the middle of a response; both end under the one rule below.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, get_args

from vineppo.episode import Episode, State, TurnLimits, runs_of
from vineppo.framing import ChatConfig, Framing
from vineppo.grading import Grader, GradingAhead, Judge, Pair
from vineppo.protocols import Engine, TakesTurns, Task
from vineppo.thinking import ThinkingConfig, said
from vineppo.transcript import Transcript, rest_of
from vineppo.types import Completion, Grade, Problem, SamplingParams, Verdict, num_actions

CUT_OFF = Grade(0.0, "unparseable")


@dataclass(frozen=True)
class GradedCompletion:
    """A continuation from a state; text and grade are those of the whole response, the state's part included."""

    completion: Completion
    text: str
    grade: Grade
    action_mask: tuple[bool, ...] | None = None
    """Of the completion; None where it is all the policy's."""
    without_thoughts: str | None = None
    """What the grade is of; by default the text."""

    @property
    def said(self) -> str:
        return self.text if self.without_thoughts is None else self.without_thoughts

    @property
    def num_actions(self) -> int:
        """Tokens that the policy wrote."""
        return num_actions(self.completion.token_ids, self.action_mask)


@dataclass
class Spent:
    """What was sampled, by purpose, and graded, by verdict, while it was counted."""

    tokens: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)

    def metrics(self) -> dict[str, float]:
        """Verdicts are of everything that was graded: vines too, and votes where evaluation is part of the method."""
        tokens: dict[str, float] = {f"tokens/{purpose}": count for purpose, count in self.tokens.items()}
        return tokens | {f"grading/num_{verdict}": self.verdicts[verdict] for verdict in get_args(Verdict)}


@dataclass(frozen=True)
class Environment:
    engine: Engine
    task: Task
    grader: Grader
    tokenizer: Any  # a Hugging Face tokenizer
    params: SamplingParams
    max_prompt_tokens: int
    judge: Judge | None = None
    """A reward model that has a say in the rewards; without one they are the task's."""
    chat: ChatConfig | None = None
    thinking: ThinkingConfig | None = None
    limits: TurnLimits = field(default_factory=TurnLimits)
    max_prefix_tokens: int = sys.maxsize
    """What the model's context has room for before a new token."""

    @cached_property
    def framing(self) -> Framing:
        return Framing(self.tokenizer, self.chat)

    def reset(self, problem: Problem) -> State | None:
        """The state before the first response token; None where the prompt is longer than `max_prompt_tokens`."""
        prompt_ids = self.framing.prompt_ids(problem)
        return State(problem, prompt_ids) if 0 < len(prompt_ids) <= self.max_prompt_tokens else None

    @contextmanager
    def counting(self) -> Iterator[Spent]:
        """Fills in what was spent at its end."""
        tokens, verdicts = Counter(self.engine.usage), Counter(self.grader.verdicts)
        spent = Spent()
        yield spent
        spent.tokens, spent.verdicts = self.engine.usage - tokens, self.grader.verdicts - verdicts

    def finish(
        self,
        states: Sequence[State],
        budgets: Sequence[int],
        seeds: Sequence[int],
        *,
        purpose: str,
        keep: bool = False,
    ) -> list[GradedCompletion]:
        """One continuation per state, in which the policy writes at most its budget of tokens.

        All in one engine call; where a task takes turns, in one for each turn. `keep` where the continuations may
        themselves be continued later, as vines continue rollouts.
        """
        episodes = [
            Episode(state, budget, seed, self.limits)
            for state, budget, seed in zip(states, budgets, seeds, strict=True)
        ]
        with self.grader.ahead() as ahead:
            going = self._begin(dict(enumerate(episodes)), ahead)
            while going:
                going = self._take_turn(going, ahead, purpose=purpose, keep=keep)
            grades = ahead.grades()
        if self.judge:
            pairs = [pair_of(episodes[i]) for i in grades]
            grades = dict(zip(grades, self.judge.regrade(pairs, list(grades.values())), strict=True))
        return [
            GradedCompletion(e.completion, e.text, grades.get(i, CUT_OFF), e.action_mask, e.said)
            for i, e in enumerate(episodes)
        ]

    def _begin(self, episodes: dict[int, Episode], ahead: GradingAhead) -> dict[int, Episode]:
        """Those in which it is the policy's turn. In a state whose turn is over the environment has the first word."""
        replied = {i: episode for i, episode in episodes.items() if episode.state.turn_is_over}
        for episode in replied.values():
            self._add(episode, Completion((), (), "eos", policy_version=0))
        waiting = {i: episode for i, episode in episodes.items() if i not in replied}
        return waiting | (self._reply(replied, ahead) if replied else {})

    def _take_turn(
        self, going: dict[int, Episode], ahead: GradingAhead, *, purpose: str, keep: bool
    ) -> dict[int, Episode]:
        """The policy's next turn in each. Returns those that go on, with what the environment has replied."""
        numbers, episodes = list(going), list(going.values())
        completed: set[int] = set()

        def on_complete(j: int, completion: Completion) -> None:
            completed.add(j)
            self._add(episodes[j], completion)
            # A response that the budget cut off earns nothing and is not read, as in the paper's code. Evaluation,
            # training and vines share the rule, so a value is the value of the reward that is trained on.
            if not (self.takes_turns or episodes[j].is_cut_off):
                ahead.add(numbers[j], pair_of(episodes[j]))

        requests = [episode.request() for episode in episodes]
        completions = self.engine.generate(requests, self.params, purpose=purpose, keep=keep, on_complete=on_complete)
        if len(completions) != len(requests):
            raise RuntimeError(f"the engine returned {len(completions)} completions for {len(requests)} requests")
        for j, completion in enumerate(completions):
            if j not in completed:
                on_complete(j, completion)
        return self._reply(going, ahead) if self.takes_turns else {}

    def _reply(self, going: dict[int, Episode], ahead: GradingAhead) -> dict[int, Episode]:
        """Asks the environment where a turn has ended; what is over then is graded."""
        asked = {i: episode for i, episode in going.items() if not episode.is_cut_off}
        replies = ahead.replies([pair_of(episode) for episode in asked.values()])
        still_going = {}
        for (i, episode), reply in zip(asked.items(), replies, strict=True):
            if isinstance(reply, Grade):
                ahead.settle(i, reply)
            elif reply.text is None:
                ahead.add(i, pair_of(episode))
            else:
                token_ids = self.framing.reply_ids(reply.text, episode.prefix_ids[-1])
                if episode.add_reply(token_ids, self.max_prefix_tokens):
                    still_going[i] = episode
        return still_going

    @cached_property
    def takes_turns(self) -> bool:
        return isinstance(self.task, TakesTurns)

    def _add(self, episode: Episode, completion: Completion) -> None:
        episode.add(completion)
        episode.text = self.text(episode.response_ids, episode.response_mask)
        episode.said = said(episode.text, self.thinking)

    def branch(
        self,
        states: Sequence[State],
        budgets: Sequence[int],
        n: int | Sequence[int],
        *,
        seed: Callable[[State, int], int],
        purpose: str,
        keep: bool = False,
    ) -> list[list[GradedCompletion]]:  # [S][n]
        """n continuations of every state, or of each its own number, all in one engine call.

        `seed(state, k)` seeds number k of a state.
        """
        counts = [n] * len(states) if isinstance(n, int) else n
        rows = list(zip(states, budgets, counts, strict=True))
        completions = iter(
            self.finish(
                [state for state, _, count in rows for _ in range(count)],
                [budget for _, budget, count in rows for _ in range(count)],
                [seed(state, k) for state, _, count in rows for k in range(count)],
                purpose=purpose,
                keep=keep,
            )
        )
        return [list(islice(completions, count)) for count in counts]

    def text(self, response_ids: Sequence[int], action_mask: Sequence[bool] | None = None) -> str:
        """The response as graded: without special tokens, up to the first stop string. Where the task takes turns, a
        Transcript, in which each turn of the policy's ends in front of its stop string."""
        if not self.takes_turns:
            return self._until_stop(self._decode(response_ids))
        runs = [self._decode(run) for run in runs_of(response_ids, action_mask)]
        turns = [run if number % 2 else self._until_stop(run) for number, run in enumerate(runs)]
        whole = "".join([*runs[:-1], *turns[-1:]])
        return Transcript.of(turns or [""], whole)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _until_stop(self, text: str) -> str:
        return text[: min((text.find(stop) for stop in self.params.stop if stop in text), default=len(text))]

    def continuations(self, state: State, completions: Sequence[GradedCompletion]) -> tuple[str, ...]:
        """What completions of one state wrote after it; where the task takes turns, with what it was told."""
        before = self.text(state.response_ids, state.action_mask)
        return tuple(rest_of(graded.text, before) for graded in completions)


def pair_of(episode: Episode) -> Pair:
    return episode.state.problem, episode.said
