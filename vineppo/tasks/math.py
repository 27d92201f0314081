"""MATH: competition problems with the answer in \\boxed{} (Hendrycks et al. 2021), graded by math-verify."""

from __future__ import annotations

import importlib.util
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from vineppo.config import Config
from vineppo.tasks.dataset import Record
from vineppo.tasks.latex import cut_latex
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.types import Grade, Problem, UserError

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=[{\w$\\-])")
UP_TO_BLANK = re.compile(r"[^\s$]+")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


class MATHConfig(Config):
    name: Literal["math"] = "math"
    path: str
    """JSONL or Parquet file with fields problem and solution, a folder with train.* and test.*, or a hub name."""
    subset: str | None = None
    prompt_template: Annotated[str, containing("{problem}")] = "[MATH_TASK] Problem:\n{problem}\n\nSolution:"
    solution_template: Annotated[str, containing("{solution}")] = "\n{solution}\n"
    num_validation: int = Field(default=500, ge=0)
    """Training problems held out as the validation split; 500 as in the paper's data."""
    max_segment_chars: int = Field(default=100, ge=20)
    """Longer parts are cut further, inside a formula if nothing else is left; 100 as in the paper's code."""


class MATH:
    Config = MATHConfig
    isolate = True  # symbolic algebra on model output hangs and eats memory now and then

    def __init__(self, config: MATHConfig):
        if importlib.util.find_spec("math_verify") is None:
            raise UserError('math-verify is needed to grade MATH: pip install "vineppo[math]"')
        self.config = config
        self._problems = ProblemSet(
            "math",
            config.path,
            ("problem", "solution"),
            self._make_problem,
            num_validation=config.num_validation,
            subset=config.subset,
        )
        self.sample, self.split = self._problems.sample, self._problems.split

    def prepare(self) -> None:
        """Imports and warms the library, so that the first answer does not pay for it."""
        assert math_equal("1", "1")

    def grade(self, problem: Problem, response: str) -> Grade:
        answer = boxed_answer(response)
        if answer is None:
            return Grade(0.0, "unparseable")
        return Grade(1.0, "correct") if math_equal(problem.answer, answer) else Grade(0.0, "wrong")

    def answer(self, response: str) -> str | None:
        return boxed_answer(response)

    def segment(self, response: str) -> list[int]:
        return cut_latex(response, self.config.max_segment_chars)

    def _make_problem(self, split: str, problem_id: str, record: Record) -> Problem:
        _, fields = record
        answer = fields.get("answer")
        if answer is None or answer == "":
            answer = boxed_answer(fields["solution"])
        if answer is None:
            raise ValueError("no balanced \\boxed{} in the solution")
        if not isinstance(answer, str | int | float):
            raise ValueError(f"the answer {answer!r} is neither a text nor a number")
        return Problem(
            id=problem_id,
            prompt=self.config.prompt_template.replace("{problem}", fields["problem"].strip()),
            answer=str(answer),
            solution=self.config.solution_template.replace("{solution}", fields["solution"]),
        )


def boxed_answer(text: str) -> str | None:
    """The content of the last balanced \\boxed{...} or \\fbox{...}, or what follows `\\boxed ` up to a blank or $."""
    ends = closing_braces(text)
    for match in reversed(list(BOX.finditer(text))):
        start = match.end()
        if not text.startswith("{", start):
            word = UP_TO_BLANK.match(text, start)
            return (word[0].rstrip(".,;:") or None) if word else None
        if start in ends:
            return text[start + 1 : ends[start]].strip() or None
    return None


def closing_braces(text: str) -> dict[int, int]:
    """Where each brace that closes has its partner, in one pass; escaped braces do not count."""
    ends: dict[int, int] = {}
    open_braces: list[int] = []
    for match in BRACE.finditer(text):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            ends[open_braces.pop()] = match.start()
    return ends


def math_equal(gold: str, answer: str) -> bool:
    """Without the library's own time limits, which need the main thread's signals: the worker pool has the limit."""
    if gold.strip() == answer.strip():
        return True
    import math_verify  # half a second, and only workers need it

    options: dict[str, Any] = {"parsing_timeout": None, "fallback_mode": "first_match"}
    parsed = [math_verify.parse(f"\\boxed{{{text}}}", **options) for text in (gold, answer)]
    return bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=None))
