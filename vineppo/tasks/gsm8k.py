"""GSM8K: grade-school word problems whose solutions end in `#### number` (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.segments import cut_lines
from vineppo.tasks.answers.numbers import gold_number, grade_number, hash_answer
from vineppo.tasks.dataset import Record
from vineppo.tasks.paper_segments import cut_before_lines
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.types import Grade, Problem

CALCULATOR = re.compile(r"<<[^>]*>>")


class GSM8KConfig(Named):
    name: str = "gsm8k"
    path: str
    """JSONL or Parquet file with fields question and answer, a folder with train.* and test.*, or a hub name."""
    subset: str | None = None
    """Of a hub data set; openai/gsm8k wants "main"."""
    prompt_template: Annotated[str, containing("{question}")] = "[MATH_TASK] Problem:\n{question}\n\nSolution:"
    solution_template: Annotated[str, containing("{solution}")] = "\n{solution}\n"
    num_validation: int = Field(default=373, ge=0)
    """Training problems held out as the validation split; 373 as in the paper's data."""
    segments: Literal["causal", "paper"] = "causal"
    """Lines, known when their line break is written; or the paper's, which depend on what follows: biased."""


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

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def grade(self, problem: Problem, response: str) -> Grade:
        return grade_number(problem.answer, hash_answer(response))

    def answer(self, response: str) -> str | None:
        return hash_answer(response)

    def segment(self, response: str) -> list[int]:
        return cut_lines(response) if self.config.segments == "causal" else cut_before_lines(response)

    def _make_problem(self, split: str, problem_id: str, record: Record) -> Problem:
        _, fields = record
        solution = CALCULATOR.sub("", fields["answer"])
        return Problem(
            id=problem_id,
            prompt=self.config.prompt_template.replace("{question}", fields["question"].strip()),
            answer=gold_number(fields["answer"]),
            solution=self.config.solution_template.replace("{solution}", solution),
        )
