"""Programs: functions from a description or from tests, judged by unit tests in the sandbox.

The reward is the share of the tests that pass; correct is a program that passes all of them. Without a path the
problems are small functions of our own (programs/drawn.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vineppo.config import Named
from vineppo.sandbox import Limits, Sandbox
from vineppo.sandbox.sandbox import Choice
from vineppo.tasks.dataset import Record
from vineppo.tasks.drawn import DrawnProblems
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.tasks.programs.drawn import DrawnConfig, sample_problem, symbols
from vineppo.tasks.programs.formats import FORMATS
from vineppo.tasks.programs.reading import cut_statements, find_program, normal_form
from vineppo.tasks.programs.unit_tests import UnitTests
from vineppo.types import Grade, Problem


class CodeConfig(Named):
    name: str = "code"
    path: str | None = None
    """JSONL or Parquet file, a folder with train.* and test.*, or a hub name; without one problems are drawn."""
    format: Literal["mbpp", "humaneval", "apps"] | None = None
    """What the file's fields are; needed with a path."""
    subset: str | None = None
    prompt_template: Annotated[str, containing("{prompt}")] = "{prompt}\n"
    """HumanEval's prompts end inside of the function; their template is best "{prompt}"."""
    solution_template: Annotated[str, containing("{solution}")] = "{solution}"
    num_shown: int = Field(default=1, ge=0)
    """Tests of MBPP that stand in the prompt."""
    max_tests: int = Field(default=20, ge=1)
    """Of APPS, which has up to hundreds for one problem; each is a start of the program."""
    num_validation: int = Field(default=90, ge=0)
    """Training problems held out as the validation split; of problems from a file."""
    drawn: DrawnConfig = DrawnConfig()
    sandbox: Choice = "auto"
    """What locks programs in; "none" runs what the model writes with your own rights."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def check(self) -> CodeConfig:
        if self.path is not None and self.format is None:
            raise ValueError(f"format is required with a path: {', '.join(FORMATS)}")
        return self


class Code:
    Config = CodeConfig
    isolate = True

    def __init__(self, config: CodeConfig):
        self.config = config
        self.symbols = symbols()
        self.sandbox = Sandbox.make(config.sandbox, config.limits)
        self._problems: ProblemSet | DrawnProblems
        if config.path is None:
            sizes = {"num_validation": config.drawn.num_validation, "num_test": config.drawn.num_test}
            self._problems = DrawnProblems("code", self._sample_problem, **sizes)
        else:
            _, fields = FORMATS[str(config.format)]
            self._problems = ProblemSet(
                "code", config.path, fields, self._read, num_validation=config.num_validation, subset=config.subset
            )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def grade(self, problem: Problem, response: str) -> Grade:
        """Against the problem's tests; or, where the gold answer is a program, as in a vote, against that."""
        program, tests = self.answer(response), UnitTests.read(problem.answer)
        if program is None:
            return Grade(0.0, "unparseable")
        if tests is None:
            return Grade(1.0, "correct") if program == problem.answer else Grade(0.0, "wrong")
        score = tests.score(self.sandbox, problem.meta.get("prefix", "") + find_program(response))
        return Grade(score.num_passed / score.num_tests, "correct" if score.num_passed == score.num_tests else "wrong")

    def answer(self, response: str) -> str | None:
        return normal_form(find_program(response))

    def segment(self, response: str) -> list[int]:
        return cut_statements(response)

    def _sample_problem(self, split: str, seed: int) -> Problem:
        return sample_problem(self.config.drawn, split, seed)

    def _read(self, split: str, problem_id: str, record: Record) -> Problem:
        config, (_, fields) = self.config, record
        reader, _ = FORMATS[str(config.format)]
        exercise = reader(fields, num_shown=config.num_shown, max_tests=config.max_tests)
        return Problem(
            id=problem_id,
            prompt=config.prompt_template.replace("{prompt}", exercise.prompt),
            answer=exercise.tests.write(),
            solution=exercise.solution and config.solution_template.replace("{solution}", exercise.solution),
            meta={"prefix": exercise.prefix},
        )
