"""Questions and answers of one's own, from a file or the hub: which fields are which stands in the recipe.

    [task]
    name = "qa"
    path = "data/capitals"            a folder with train.jsonl and test.jsonl
    prompt = "question"               names of fields
    answer = "city"
    grader = "exact"

A response is graded by what it says last: `answer_in` says where that stands. A function of the user's sees all of it
(reward_functions.py), and [task.rewards] weights several.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vineppo.checks import check_names
from vineppo.config import Config, Named
from vineppo.parts import find_function, full_name, is_own
from vineppo.segments import cut_lines
from vineppo.tasks.answers.boxes import boxed_answer
from vineppo.tasks.answers.formulas import check_library, is_right, warm_up
from vineppo.tasks.answers.numbers import parse_number
from vineppo.tasks.answers.places import answer_behind, last_line
from vineppo.tasks.answers.reading import compact, tidy
from vineppo.tasks.dataset import Record
from vineppo.tasks.latex import cut_latex
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.tasks.reward_functions import RewardFunction, visible
from vineppo.types import Grade, Problem, Verdict

MAX_CHARS = 100
"""Of a segment of LaTeX, as in `math`."""
CHOICE = re.compile(r"[(\[]?([A-Za-z])[)\]]?(?:[.:)]|\s|$)")
GRADERS = ("exact", "number", "choice", "math", "regex")
MAY_HANG = {"math", "regex"}


def is_grader(name: str) -> str:
    """In full; raises ValueError where there is none, or it is code that the user has not named."""
    if name in GRADERS:
        return name
    if not is_own(name):
        known = ", ".join(map(repr, GRADERS))
        raise ValueError(f"must be one of {known}, or a function of your own as path/to/file.py:function")
    find_function(full_name(name))
    return full_name(name)


Grading = Annotated[str, AfterValidator(is_grader)]


class RewardConfig(Config):
    function: Grading
    """One of the graders, which gives 1 or 0, or a function of your own as path/to/file.py:function."""
    weight: float = 1.0


class QAConfig(Named):
    name: str = "qa"
    path: str
    """JSONL or Parquet file, a folder with train.* and test.*, or a hub name."""
    subset: str | None = None
    prompt: str = "question"
    """The field that holds the question."""
    answer: str = "answer"
    """The field that holds the gold answer."""
    solution: str | None = None
    """The field that holds a worked solution, for SFT."""
    prompt_template: Annotated[str, containing("{prompt}")] = "{prompt}\n"
    solution_template: Annotated[str, containing("{solution}")] = "{solution}"
    grader: Grading = "exact"
    """Compares texts but for white space; exact numbers, however they are written; letters, as in `(B)`; formulas, as
    `math` does; takes the gold answer for a regular expression; or is a function of your own."""
    rewards: dict[str, RewardConfig] | None = None
    """Several by name instead of one `grader`: their weighted sum is the reward, and each is logged."""
    correct_from: float = 0.5
    """The reward from which a response counts as correct, where functions of your own give it."""
    messages: bool = False
    """Whether your functions see prompt and completion as a chat of one message each, not as texts."""
    answer_in: Literal["last_line", "marker", "box", "nowhere"] = "last_line"
    """Where a response has its answer: its last line with text, the line behind its last `marker`, its last box;
    nowhere is for functions whose responses cannot vote on an answer."""
    marker: str = Field(default="####", min_length=1)
    segments: Literal["lines", "latex"] = "lines"
    num_validation: int = Field(default=200, ge=0)
    """Training problems held out as the validation split."""

    @model_validator(mode="after")
    def says_one_thing(self) -> QAConfig:
        if self.rewards is not None:
            if "grader" in self.model_fields_set and self.grader != "exact":
                raise ValueError("give grader, or rewards, of which each may be a grader")
            if not self.rewards:
                raise ValueError("rewards is empty; name one, or leave it out for grader")
            check_names(self.rewards)
        if self.answer_in == "nowhere" and (left := sorted(self.functions & set(GRADERS))):
            raise ValueError(f"with answer_in = 'nowhere' there is no answer for {', '.join(map(repr, left))}")
        return self

    @property
    def functions(self) -> set[str]:
        """Names of all graders and functions in use."""
        return {reward.function for reward in self.rewards.values()} if self.rewards else {self.grader}


class QA:
    Config = QAConfig

    def __init__(self, config: QAConfig):
        self.config = config
        self.isolate = not config.functions <= set(GRADERS) - MAY_HANG
        self._own = {name: RewardFunction.named(name) for name in sorted(config.functions - set(GRADERS))}
        if "math" in config.functions:
            check_library()
        self._problems = ProblemSet(
            "qa",
            config.path,
            (config.prompt, config.answer, *([config.solution] if config.solution else [])),
            self._make_problem,
            num_validation=config.num_validation,
            subset=config.subset,
        )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def prepare(self) -> None:
        if "math" in self.config.functions:
            warm_up()

    def grade(self, problem: Problem, response: str) -> Grade:
        config = self.config
        if config.rewards is None and config.grader in GRADERS:
            return self._judge(config.grader, problem, response)
        if config.rewards is None:
            reward = self._earned(config.grader, problem, response) or 0.0
            return Grade(reward, self._verdict(reward))
        earned = {name: self._earned(reward.function, problem, response) for name, reward in config.rewards.items()}
        named = {name: reward for name, reward in earned.items() if reward is not None}
        weights = {name: reward.weight for name, reward in config.rewards.items()}
        grade = Grade.weighted(named, weights, "wrong")
        return replace(grade, verdict=self._verdict(grade.reward))

    def answer(self, response: str) -> str | None:
        found = self._find(response)
        # Votes are compared by taking one for the gold answer, which is a pattern here.
        return re.escape(found) if found is not None and "regex" in self.config.functions else found

    def segment(self, response: str) -> list[int]:
        return cut_lines(response) if self.config.segments == "lines" else cut_latex(response, MAX_CHARS)

    def _find(self, response: str) -> str | None:
        where = self.config.answer_in
        if where == "marker":
            return answer_behind(self.config.marker, response)
        if where == "box":
            return boxed_answer(response)
        return last_line(response) if where == "last_line" else None

    def _verdict(self, reward: float) -> Verdict:
        return "correct" if reward >= self.config.correct_from else "wrong"

    def _earned(self, function: str, problem: Problem, response: str) -> float | None:
        if function in GRADERS:
            return self._judge(function, problem, response).reward
        record = {**problem.meta, self.config.answer: problem.answer}
        prompt = record[self.config.prompt] if self.config.messages else problem.prompt
        values = visible(prompt, response, problem.answer, record, messages=self.config.messages)
        return self._own[function].call(values)

    def _judge(self, grader: str, problem: Problem, response: str) -> Grade:
        answer = self._find(response)
        if answer is None or (grader in READERS and READERS[grader](answer) is None):
            return Grade(0.0, "unparseable")
        if grader == "math":
            right = is_right(problem, problem.answer, answer)
        elif grader == "regex":
            right = re.fullmatch(problem.answer, answer) is not None
        else:
            right = READERS[grader](answer) == READERS[grader](problem.answer)
        return Grade(1.0, "correct") if right else Grade(0.0, "wrong")

    def _make_problem(self, split: str, problem_id: str, record: Record) -> Problem:
        config, (_, fields) = self.config, record
        answer = fields[config.answer].strip()
        for grader in sorted(config.functions & set(GRADERS)):
            if (READERS | READERS_OF_GOLD)[grader](answer) is None:
                raise ValueError(f"no {grader}: {answer[-40:]!r}")
        solution = fields[config.solution] if config.solution else ""
        return Problem(
            id=problem_id,
            prompt=config.prompt_template.replace("{prompt}", fields[config.prompt].strip()),
            answer=answer,
            solution=solution and config.solution_template.replace("{solution}", solution),
            meta=dict(fields) if self._own else {},
        )


def read_choice(answer: str) -> str | None:
    match = CHOICE.match(answer.strip())
    return match[1].upper() if match else None


def read_pattern(gold: str) -> re.Pattern[str] | None:
    try:
        return re.compile(gold)
    except (re.error, OverflowError, RecursionError):
        return None


READERS: dict[str, Callable[[str], object]] = {
    "exact": lambda answer: " ".join(answer.split()) or None,
    "number": parse_number,
    "choice": read_choice,
}
"""What is compared; None for what cannot be read."""
READERS_OF_GOLD: dict[str, Callable[[str], object]] = {
    "math": lambda gold: compact(tidy(gold)) or None,
    "regex": read_pattern,
}
