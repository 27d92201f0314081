"""The language environment: start the policy in any token state, let it finish, grade what it wrote.

A text can be reset to any intermediate state, which is all that VinePPO asks of an environment (paper, section 4).
Rollouts start at the prompt, vines in the middle of a response; both end under the one rule below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, get_args

from vineppo.grading import Grader, Judge
from vineppo.protocols import Engine, Task
from vineppo.types import Completion, Grade, Problem, Request, SamplingParams, Verdict

CUT_OFF = Grade(0.0, "unparseable")


@dataclass(frozen=True)
class State:
    """A problem and how far its response has come, in token ids."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...] = ()

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """Made once: the K vines of a state share it."""
        return self.prompt_ids + self.response_ids


@dataclass(frozen=True)
class GradedCompletion:
    """A continuation from a state; text and grade are those of the whole response, the state's part included."""

    completion: Completion
    text: str
    grade: Grade


def encode_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """As the tokenizer frames a text; a prompt that begins with bos is framed already, as a chat template leaves it."""
    bos = tokenizer.bos_token
    ids = tokenizer.encode(prompt, add_special_tokens=not (bos and prompt.startswith(bos)))
    closed = bool(ids) and ids[-1] == tokenizer.eos_token_id
    return tuple(ids[:-1] if closed else ids)  # some tokenizers close every text; the policy continues this one


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

    def reset(self, problem: Problem) -> State | None:
        """The state before the first response token; None where the prompt is longer than `max_prompt_tokens`."""
        prompt_ids = encode_prompt(self.tokenizer, problem.prompt)
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
        """One continuation per state, of at most its budget of new tokens, all in one engine call.

        `keep` where the continuations may themselves be continued later, as vines continue rollouts.
        """
        requests = [
            Request(state.prefix_ids, budget, seed, num_response_tokens=len(state.response_ids))
            for state, budget, seed in zip(states, budgets, seeds, strict=True)
        ]
        texts: dict[int, str] = {}
        with self.grader.ahead() as ahead:

            def on_complete(i: int, completion: Completion) -> None:
                texts[i] = self.text(states[i].response_ids + completion.token_ids)
                # A response that the budget cut off earns nothing and is not read, as in the paper's code. Evaluation,
                # training and vines share the rule, so a value is the value of the reward that is trained on.
                if completion.finish_reason != "length":
                    ahead.add(i, (states[i].problem, texts[i]))

            completions = self.engine.generate(
                requests, self.params, purpose=purpose, keep=keep, on_complete=on_complete
            )
            if len(completions) != len(requests):
                raise RuntimeError(f"the engine returned {len(completions)} completions for {len(requests)} requests")
            for i, completion in enumerate(completions):
                if i not in texts:
                    on_complete(i, completion)
            grades = ahead.grades()
        if self.judge:
            pairs = [(states[i].problem, texts[i]) for i in grades]
            grades = dict(zip(grades, self.judge.regrade(pairs, list(grades.values())), strict=True))
        return [GradedCompletion(c, texts[i], grades.get(i, CUT_OFF)) for i, c in enumerate(completions)]

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

    def text(self, response_ids: Sequence[int]) -> str:
        """The response as graded: without special tokens, up to the first stop string."""
        text = self.tokenizer.decode(response_ids, skip_special_tokens=True)
        return text[: min((text.find(stop) for stop in self.params.stop if stop in text), default=len(text))]

    def continuations(self, state: State, completions: Sequence[GradedCompletion]) -> tuple[str, ...]:
        """What completions of one state wrote after it."""
        start = len(self.text(state.response_ids))
        return tuple(graded.text[start:] for graded in completions)
