"""Questions and answers of one's own, from a file or the hub: which fields are which stands in the recipe.

    [task]
    name = "qa"
    path = "data/capitals"            a folder with train.jsonl and test.jsonl
    prompt = "question"               names of fields
    answer = "city"
    grader = "exact"

A response is graded by what it says last: `answer_in` says where that stands.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.segments import cut_lines
from vineppo.tasks.answers.boxes import boxed_answer
from vineppo.tasks.answers.numbers import answer_behind, parse_number
from vineppo.tasks.dataset import Record
from vineppo.tasks.latex import cut_latex
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.types import Grade, Problem

MAX_CHARS = 100
"""Of a segment of LaTeX, as in `math`."""
CHOICE = re.compile(r"[(\[]?([A-Za-z])[)\]]?(?:[.:)]|\s|$)")


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
    grader: Literal["exact", "number", "choice"] = "exact"
    """Compares texts but for white space; exact numbers, however they are written; or letters, as in `(B)`."""
    answer_in: Literal["last_line", "marker", "box"] = "last_line"
    """Where a response has its answer: its last line with text, the line behind its last `marker`, its last box."""
    marker: str = Field(default="####", min_length=1)
    segments: Literal["lines", "latex"] = "lines"
    num_validation: int = Field(default=200, ge=0)
    """Training problems held out as the validation split."""


class QA:
    Config = QAConfig
    isolate = False

    def __init__(self, config: QAConfig):
        self.config = config
        self._problems = ProblemSet(
            "qa",
            config.path,
            (config.prompt, config.answer, *([config.solution] if config.solution else [])),
            self._make_problem,
            num_validation=config.num_validation,
            subset=config.subset,
        )
        self.sample, self.split = self._problems.sample, self._problems.split

    def grade(self, problem: Problem, response: str) -> Grade:
        found = self.answer(response)
        read = None if found is None else self._read(found)
        if read is None:
            return Grade(0.0, "unparseable")
        return Grade(1.0, "correct") if read == self._read(problem.answer) else Grade(0.0, "wrong")

    def answer(self, response: str) -> str | None:
        if self.config.answer_in == "marker":
            return answer_behind(self.config.marker, response)
        if self.config.answer_in == "box":
            return boxed_answer(response)
        return next((line.strip() for line in reversed(response.splitlines()) if line.strip()), None)

    def segment(self, response: str) -> list[int]:
        return cut_lines(response) if self.config.segments == "lines" else cut_latex(response, MAX_CHARS)

    def _read(self, answer: str) -> object | None:
        """What is compared; None for what this grader cannot read."""
        if self.config.grader == "number":
            return parse_number(answer)
        if self.config.grader == "choice":
            match = CHOICE.match(answer.strip())
            return match[1].upper() if match else None
        return " ".join(answer.split()) or None

    def _make_problem(self, split: str, problem_id: str, record: Record) -> Problem:
        config, (_, fields) = self.config, record
        answer = fields[config.answer].strip()
        if self._read(answer) is None:
            raise ValueError(f"no {config.grader}: {answer[-40:]!r}")
        solution = fields[config.solution] if config.solution else ""
        return Problem(
            id=problem_id,
            prompt=config.prompt_template.replace("{prompt}", fields[config.prompt].strip()),
            answer=answer,
            solution=solution and config.solution_template.replace("{solution}", solution),
        )
