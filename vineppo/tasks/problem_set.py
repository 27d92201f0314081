"""A finite set of problems with splits, as GSM8K and MATH have it; validation is held out of train by content."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from typing import Any

from pydantic import AfterValidator

from vineppo.seeding import derive_seed
from vineppo.tasks.dataset import Record, load_records
from vineppo.types import Problem, UserError

MakeProblem = Callable[[str, str, Record], Problem]  # (split, id, record)


def containing(placeholder: str) -> AfterValidator:
    """For the config of a template in which this must stand."""

    def check(template: str) -> str:
        if placeholder not in template:
            raise ValueError(f"must contain {placeholder}")
        return template

    return AfterValidator(check)


class ProblemSet:
    def __init__(
        self,
        name: str,
        path: str,
        fields: tuple[str, ...],
        make_problem: MakeProblem,
        *,
        num_validation: int,
        subset: str | None = None,
    ):
        self.name, self.path, self.fields, self.make_problem = name, path, fields, make_problem
        self.num_validation, self.subset = num_validation, subset

    def split(self, name: str) -> list[Problem]:
        if name not in ("train", "validation", "test"):
            raise UserError(f"{self.name} has no split {name!r}; it has train, validation and test")
        return self._test if name == "test" else self._train_and_validation[name == "validation"]

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        problems = self.split("train")
        if n > len(problems):
            raise UserError(f"{self.name}: {n} distinct training problems asked for, there are {len(problems)}")
        return random.Random(seed).sample(problems, n)

    @cached_property
    def _test(self) -> list[Problem]:
        return self._load("test")

    @cached_property
    def _train_and_validation(self) -> tuple[list[Problem], list[Problem]]:
        """The problems whose text hashes lowest are validation, so adding data moves few from side to side. What
        stands in the data more than once never stands on both sides."""
        problems = self._load("train")
        by_hash = sorted(problems, key=lambda problem: derive_seed(problem.prompt))
        held_out = {problem.id for problem in by_hash[: self.num_validation]}
        texts = {problem.prompt for problem in by_hash[: self.num_validation]}
        train = [problem for problem in problems if problem.prompt not in texts]
        if not train:
            raise UserError(
                f"{self.path}: num_validation = {self.num_validation} leaves nothing of {len(problems)} problems; "
                "lower task.num_validation"
            )
        return train, [problem for problem in problems if problem.id in held_out]

    def _load(self, split: str) -> list[Problem]:
        records = load_records(self.path, split, self.fields, subset=self.subset)
        problems, unreadable = [], []
        for number, record in enumerate(records):
            try:
                problem = self.make_problem(split, f"{self.name}/{split}/{number}", record)
                check_problem(problem)
                problems.append(problem)
            except ValueError as error:
                unreadable.append(f"{record[0]} ({error})")
        if unreadable:
            listed = ", ".join(unreadable[:10])
            raise UserError(
                f"{len(unreadable)} gold answers cannot be parsed: {listed}{', ...' * (len(unreadable) > 10)}"
            )
        return problems

    def __getstate__(self) -> dict[str, Any]:
        """Without the problems: a process that grades is sent the task, and is told the problem with each answer."""
        return {name: value for name, value in vars(self).items() if name not in ("_test", "_train_and_validation")}


def check_problem(problem: Problem) -> None:
    if not problem.answer.strip():
        raise ValueError("the answer is blank")
    for text in (problem.prompt, problem.answer, problem.solution):
        text.encode()
