"""Evaluation: pass@1, pass@k and maj@k with intervals over problems that training never sees.

A response is graded by the rule of training: one that the token budget cut off earns nothing and is not read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from pydantic import Field, field_validator

from vineppo.config import Config
from vineppo.environment import Environment, GradedCompletion
from vineppo.episode import TurnLimits
from vineppo.grading import Grader
from vineppo.intervals import score_ci95
from vineppo.protocols import Task
from vineppo.sample import Sample, make_sample
from vineppo.seeding import derive_seed
from vineppo.types import Problem, SamplingParams, UserError, mean_named_rewards

CORRECT = 0.5
"""Reward from which a response counts as correct, where only correct and wrong exist (pass@k, equality of answers)."""


class EvaluationConfig(Config):
    """The defaults are the paper's: 16 samples of at most 1,024 tokens at temperature 0.35 and top_p 0.9."""

    every: int = Field(default=0, ge=0)
    """Iterations (epochs, for SFT and DPO+) between evaluations; 0 evaluates only at the end."""
    split: str = "test"
    num_problems: int | None = Field(default=None, ge=1)
    """The first so many of the split; by default all."""
    num_samples: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.35, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    max_new_tokens: int = Field(default=1024, ge=1)
    max_turns: int | None = Field(default=None, ge=1)
    max_turn_tokens: int | None = Field(default=None, ge=1)
    pass_at: tuple[int, ...] = (1, 2, 4, 8, 16)
    """The k of pass@k; those above num_samples are left out, 1 is always there."""

    @field_validator("pass_at")
    @classmethod
    def counts_samples(cls, pass_at: tuple[int, ...]) -> tuple[int, ...]:
        if min(pass_at, default=1) < 1:
            raise ValueError("every k must be at least 1")
        return pass_at

    def limits(self) -> TurnLimits:
        return TurnLimits(self.max_turns, self.max_turn_tokens)

    def params(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_p, self.top_k, self.stop)


@dataclass(frozen=True)
class Score:
    """A mean over problems and its 95% interval.

    The interval is Wilson's where every problem's number is in [0, 1], as correct and wrong answers give. Where a
    reward lies outside it is Student's, and of one problem there is none.
    """

    mean: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    scores: dict[str, Score]
    """By name: pass@1, which is the mean reward, pass@k and maj@k."""
    num_problems: int
    num_samples: int
    num_prompts_too_long: int
    num_truncated: int
    verdicts: Counter[str]
    """Of the responses that were not truncated."""
    num_tokens: int
    first_samples: list[Sample]
    """The first response to every problem, for what else is measured on them."""
    named_rewards: Mapping[str, float] = field(default_factory=dict)
    """Means over all responses, where the task names rewards."""

    @property
    def length_mean(self) -> float:
        return self.num_tokens / (self.num_problems * self.num_samples)

    def to_json(self) -> dict[str, Any]:
        means = {name: score.mean for name, score in self.scores.items()}
        intervals = {interval_key(name): score.ci95 and list(score.ci95) for name, score in self.scores.items()}
        return {
            **means,
            **intervals,
            "num_problems": self.num_problems,
            "num_samples": self.num_samples,
            "num_prompts_too_long": self.num_prompts_too_long,
            "num_truncated": self.num_truncated,
            "verdicts": dict(sorted(self.verdicts.items())),
            "num_tokens": self.num_tokens,
            "length_mean": self.length_mean,
            **({"named_rewards": dict(self.named_rewards)} if self.named_rewards else {}),
        }

    def metrics(self) -> dict[str, float]:
        ci95 = self.scores["pass@1"].ci95
        return {
            **{f"eval/{name}": score.mean for name, score in self.scores.items()},
            **({"eval/pass@1_low": ci95[0], "eval/pass@1_high": ci95[1]} if ci95 else {}),
            **{f"eval/named_{name}": mean for name, mean in self.named_rewards.items()},
            "eval/num_problems": self.num_problems,
            "eval/num_prompts_too_long": self.num_prompts_too_long,
            "eval/num_truncated": self.num_truncated,
            "eval/length_mean": self.length_mean,
            "tokens/eval": self.num_tokens,
        }


def interval_key(name: str) -> str:
    return "ci95" if name == "pass@1" else f"{name}_ci95"


def evaluate(environment: Environment, config: EvaluationConfig, *, seed: int, purpose: str = "eval") -> Evaluation:
    """Samples `num_samples` responses to every problem in one engine call and grades them.

    `environment` is the one of training or any other; its sampling parameters are replaced by the config's.
    """
    environment = replace(environment, params=config.params(), limits=config.limits())
    problems = environment.task.split(config.split)[: config.num_problems]
    states = [state for state in map(environment.reset, problems) if state is not None]
    if not states:
        raise UserError(f"evaluation: all {len(problems)} prompts are too long for the model")
    samples = environment.branch(
        states,
        [config.max_new_tokens] * len(states),
        config.num_samples,
        seed=lambda state, k: derive_seed(seed, "eval", state.problem.id, k),
        purpose=purpose,
    )
    completions = [graded for of_problem in samples for graded in of_problem]
    by_problem = [(state.problem, of_problem) for state, of_problem in zip(states, samples, strict=True)]
    per_problem = pass_rewards(samples, config)
    per_problem[f"maj@{config.num_samples}"] = majority_rewards(environment.task, environment.grader, by_problem)
    truncated = [graded.completion.finish_reason == "length" for graded in completions]
    return Evaluation(
        scores={name: Score(fmean(values), score_ci95(values)) for name, values in per_problem.items()},
        num_problems=len(states),
        num_samples=config.num_samples,
        num_prompts_too_long=len(problems) - len(states),
        num_truncated=sum(truncated),
        verdicts=Counter(graded.grade.verdict for graded, cut in zip(completions, truncated, strict=True) if not cut),
        num_tokens=sum(graded.num_actions for graded in completions),
        first_samples=[
            first_sample(state.prompt_ids, of_problem[0]) for state, of_problem in zip(states, samples, strict=True)
        ],
        named_rewards=mean_named_rewards([graded.grade.named_rewards for graded in completions]),
    )


def first_sample(prompt_ids: tuple[int, ...], graded: GradedCompletion) -> Sample:
    return make_sample(prompt_ids, graded.completion.token_ids, graded.action_mask)


def pass_rewards(by_problem: Sequence[Sequence[GradedCompletion]], config: EvaluationConfig) -> dict[str, list[float]]:
    """Name -> one number per problem: the mean reward for k = 1, the chance of a correct response for larger k."""
    n = config.num_samples
    num_correct = [sum(graded.grade.reward >= CORRECT for graded in samples) for samples in by_problem]
    ks = sorted({k for k in config.pass_at if 1 < k <= n})
    return {"pass@1": [fmean(graded.grade.reward for graded in samples) for samples in by_problem]} | {
        f"pass@{k}": [unbiased_pass_at_k(n, correct, k) for correct in num_correct] for k in ks
    }


def unbiased_pass_at_k(n: int, num_correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n samples, drawn without replacement, hold a correct one.

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1.
    """
    return 1 - math.comb(n - num_correct, k) / math.comb(n, k)


def majority_rewards(
    task: Task, grader: Grader, by_problem: Sequence[tuple[Problem, Sequence[GradedCompletion]]]
) -> list[float]:
    """Reward of every problem's most frequent answer; of equally frequent ones the first wins, and no vote earns 0.

    Two answers are one if a response with the second would be correct were the first the gold answer, so that 1/2 and
    0.5 vote together. An answer is compared with the first of every class, and all problems are compared at once, so
    that the grader's workers are busy and its time limits hold here too.
    """
    waiting = [votes(task, samples) for _, samples in by_problem]
    classes: list[list[list[GradedCompletion]]] = [[] for _ in by_problem]
    while any(waiting):
        golds = [next(iter(answers), "") for answers in waiting]
        jobs = [(i, answer) for i, answers in enumerate(waiting) for answer in answers if answer != golds[i]]
        pairs = [(replace(by_problem[i][0], answer=golds[i]), waiting[i][answer][0].said) for i, answer in jobs]
        for i, answers in enumerate(waiting):
            if answers:
                classes[i].append(answers.pop(golds[i]))
        for (i, answer), grade in zip(jobs, grader.grade(pairs), strict=True):
            if grade.reward >= CORRECT:
                classes[i][-1] += waiting[i].pop(answer)
    winners = [max(found, key=len) if found else None for found in classes]  # max takes the first of equals
    return [winner[0].grade.reward if winner else 0.0 for winner in winners]


def votes(task: Task, samples: Sequence[GradedCompletion]) -> dict[str, list[GradedCompletion]]:
    """Answer as written -> the responses that give it, in the order of first appearance.

    Only responses graded correct or wrong vote: not the truncated, the unparseable, nor those that broke the grader.
    """
    found: dict[str, list[GradedCompletion]] = {}
    for graded in samples:
        answer = task.answer(graded.said) if graded.grade.verdict in ("correct", "wrong") else None
        if answer is not None:
            found.setdefault(answer, []).append(graded)
    return found
