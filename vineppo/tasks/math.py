"""MATH: competition problems with the answer in \\boxed{} (Hendrycks et al. 2021)."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.tasks.answers.boxes import all_boxes, boxed_answer
from vineppo.tasks.answers.equality import equal_answers
from vineppo.tasks.answers.formulas import check_library, is_right, warm_up
from vineppo.tasks.answers.reading import compact, spread, tidy
from vineppo.tasks.dataset import Record
from vineppo.tasks.latex import cut_latex
from vineppo.tasks.paper_segments import cut_finished_latex
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.types import Grade, Problem

ENTER_ALL = re.compile(r"\b[Ee]nter all\b|separated by (?:a )?comma")
EITHER = re.compile(r"\b(?:either|acceptable)\b", re.IGNORECASE)


class MATHConfig(Named):
    name: str = "math"
    path: str
    """JSONL or Parquet file with fields problem and solution, a folder with train.* and test.*, or a hub name."""
    subset: str | None = None
    prompt_template: Annotated[str, containing("{problem}")] = "[MATH_TASK] Problem:\n{problem}\n\nSolution:"
    solution_template: Annotated[str, containing("{solution}")] = "\n{solution}\n"
    num_validation: int = Field(default=500, ge=0)
    """Training problems held out as the validation split; 500 as in the paper's data."""
    max_segment_chars: int = Field(default=100, ge=20)
    """A segment that has grown longer ends at its next soft break, with "paper" it is halved; 100 as in the paper."""
    segments: Literal["causal", "paper"] = "causal"
    """Sentences and lines, known when they end; or the paper's, which depend on what follows: biased."""


class MATH:
    Config = MATHConfig
    isolate = True  # symbolic algebra on model output hangs and eats memory now and then

    def __init__(self, config: MATHConfig):
        check_library()
        self.config = config
        self._problems = ProblemSet(
            "math",
            config.path,
            ("problem", "solution"),
            self._make_problem,
            num_validation=config.num_validation,
            subset=config.subset,
        )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def prepare(self) -> None:
        warm_up()

    def grade(self, problem: Problem, response: str) -> Grade:
        answer = boxed_answer(response)
        if answer is None:
            return Grade(0.0, "unparseable")
        golds = (problem.answer, *problem.meta.get("also_right", ()))
        right = any(is_right(problem, gold, answer) for gold in golds)
        # Several values may stand in boxes all over the solution.
        right = right or is_right(problem, problem.answer, ", ".join(all_boxes(response)))
        return Grade(1.0, "correct") if right else Grade(0.0, "wrong")

    def answer(self, response: str) -> str | None:
        return boxed_answer(response)

    def segment(self, response: str) -> list[int]:
        cut = cut_latex if self.config.segments == "causal" else cut_finished_latex
        return cut(response, self.config.max_segment_chars)

    def _make_problem(self, split: str, problem_id: str, record: Record) -> Problem:
        _, fields = record
        golds = read_golds(fields)
        if ENTER_ALL.search(fields["problem"]):
            golds = tuple(map(spread, golds))
        for gold in golds:
            if not compact(tidy(gold)) or boxed_answer(f"\\boxed{{{gold}}}") != gold.strip():
                raise ValueError(f"the answer {gold!r} could never be given in a box")
        return Problem(
            id=problem_id,
            prompt=self.config.prompt_template.replace("{problem}", fields["problem"].strip()),
            answer=golds[0],
            solution=self.config.solution_template.replace("{solution}", fields["solution"]),
            meta={"also_right": golds[1:]} if golds[1:] else {},
        )


def read_golds(fields: dict[str, Any]) -> tuple[str, ...]:
    """The gold answer and others that are as good: the field `answer`, or what the solution puts in boxes."""
    answer = fields.get("answer")
    if answer is None or answer == "":
        return boxed_golds(fields["problem"], fields["solution"])
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer != answer:
        raise ValueError(f"the answer {answer!r} is neither a text nor a number")
    if isinstance(answer, float):
        if not math.isfinite(answer):
            raise ValueError(f"the answer {answer!r} is not finite")
        answer = format(Decimal(repr(answer)), "f")
    return (str(answer),)


def boxed_golds(problem: str, solution: str) -> tuple[str, ...]:
    """All boxes together where the problem wants all values; each of them where the solution says so; else the last."""
    last = boxed_answer(solution)
    if last is None:
        raise ValueError("no balanced \\boxed{} in the solution")
    boxes = distinct([last, *all_boxes(solution)])
    if len(boxes) == 1:
        return (last,)
    if ENTER_ALL.search(problem):
        return (", ".join(distinct(all_boxes(solution))),)
    return tuple(boxes) if EITHER.search(solution) else (last,)


def distinct(answers: list[str]) -> list[str]:
    kept: list[str] = []
    for answer in answers:
        if not any(equal_answers(other, answer) for other in kept):
            kept.append(answer)
    return kept
