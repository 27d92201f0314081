"""GSM8K: grade-school word problems whose solutions end in `#### number` (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from vineppo.config import Config
from vineppo.segments import cut_lines
from vineppo.tasks.answers import hash_answer, parse_number
from vineppo.tasks.dataset import Record
from vineppo.tasks.problem_set import ProblemSet
from vineppo.types import Grade, Problem

CALCULATOR = re.compile(r"<<[^>]*>>")


class GSM8KConfig(Config):
    name: Literal["gsm8k"] = "gsm8k"
    path: str
    """JSONL or Parquet file with fields question and answer, a folder with train.* and test.*, or a hub name."""
    subset: str | None = None
    """Of a hub data set; openai/gsm8k wants "main"."""
    prompt_template: str = "[MATH_TASK] Problem:\n{question}\n\nSolution:"
    solution_template: str = "\n{solution}\n"
    num_validation: int = Field(default=373, ge=0)
    """Training problems held out as the validation split; 373 as in the paper's data."""

    @field_validator("prompt_template")
    @classmethod
    def has_question(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("must contain {question}")
        return template

    @field_validator("solution_template")
    @classmethod
    def has_solution(cls, template: str) -> str:
        if "{solution}" not in template:
            raise ValueError("must contain {solution}")
        return template


class GSM8K:
    Config = GSM8KConfig
    isolate = False

    def __init__(self, config: GSM8KConfig):
        self.config = config
        self._problems = ProblemSet(
            "gsm8k",
            config.path,
            ("question", "answer"),
            self._make_problem,
            num_validation=config.num_validation,
            subset=config.subset,
        )
        self.sample, self.split = self._problems.sample, self._problems.split

    def grade(self, problem: Problem, response: str) -> Grade:
        number = parse_number(hash_answer(response))
        if number is None:
            return Grade(0.0, "unparseable")
        return Grade(1.0, "correct") if number == parse_number(problem.answer) else Grade(0.0, "wrong")

    def answer(self, response: str) -> str | None:
        return hash_answer(response)

    def segment(self, response: str) -> list[int]:
        return cut_lines(response, joins_previous="####")

    def _make_problem(self, split: str, problem_id: str, record: Record) -> Problem:
        _, fields = record
        answer = hash_answer(fields["answer"])
        if answer is None or parse_number(answer) is None:
            raise ValueError(f"no number after '####': {fields['answer'][-40:]!r}")
        solution = CALCULATOR.sub("", fields["answer"])
        return Problem(
            id=problem_id,
            prompt=self.config.prompt_template.replace("{question}", fields["question"].strip()),
            answer=answer,
            solution=self.config.solution_template.replace("{solution}", solution),
        )
