"""The generators of the package reasoning-gym, about a hundred, by name, with the package's own scores.

    [task]
    name = "reasoning_gym"
    dataset = "chain_sum"
    options = { min_terms = 2, max_terms = 3 }      whatever the generator's config takes, but for seed and size

Stojanovski et al. 2025, "Reasoning Gym"; docs/reasoning-gym.md says which generators keep a task's promises.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from vineppo.config import Named
from vineppo.parts import describe_error, did_you_mean
from vineppo.segments import cut_lines
from vineppo.tasks.answers.evaluated import as_formula, is_plain
from vineppo.tasks.answers.places import last_line
from vineppo.tasks.global_generators import seeded
from vineppo.tasks.problem_set import containing
from vineppo.types import Grade, Problem, UserError

PACKAGE = "reasoning_gym"
FORMULAS = {
    "countdown", "puzzle24", "simple_integration", "intermediate_integration", "polynomial_multiplication",
}  # fmt: skip
"""Their scores hand an answer to sympy's parser, which evaluates it."""
LITERALS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
"""Their scores hand an answer that is not the expected one to `eval`."""
OPENING, CLOSING = "<answer>", "</answer>"
SEED = 0
"""Of the generator, whose entry number i is drawn from SEED + i: splits and samples are ranges and draws of numbers."""
PATIENCE, EXTRA = 10, 1000
"""Entries that are looked at for n distinct ones: PATIENCE n + EXTRA."""
PROMPTS = {
    "tags": "{question}\n\nGive the final answer between <answer> and </answer>.\n",
    "last_line": "{question}\n\nGive the final answer alone on the last line.\n",
}


class ReasoningGymConfig(Named):
    name: str = "reasoning_gym"
    dataset: str
    """A generator by the package's name for it, as in docs/reasoning-gym.md."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the generator's config."""
    answer_in: Literal["tags", "last_line"] = "tags"
    """Where a response has its answer: in its last <answer></answer>, or its last line with text."""
    prompt_template: Annotated[str, containing("{question}")] | None = None
    """By default the question, and where the answer goes."""
    num_test: int = Field(default=100, ge=1)
    num_validation: int = Field(default=100, ge=0)
    size: int = Field(default=1_000_000, ge=1)
    """Entries of the generator; a few cannot make so many, and say so."""

    @field_validator("options")
    @classmethod
    def leaves_seeds_to_the_task(cls, options: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(options.keys() & {"seed", "size"}):
            raise ValueError(f"{' and '.join(taken)} are the task's own; task.size is how many entries there are")
        return options


class ReasoningGym:
    Config = ReasoningGymConfig
    isolate = True  # scores are somebody else's code, on what a model wrote

    def __init__(self, config: ReasoningGymConfig):
        self.config = config
        self.prepare()

    def prepare(self) -> None:
        """The generator is made here, and again in each grading process: it may be large, or not to be sent."""
        _ = self._generator

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        held_out, first = self._held_out
        rng = random.Random(seed)
        numbers = iter(lambda: rng.randrange(first, self.config.size), None) if first < self.config.size else iter(())
        return self._distinct(numbers, n, "train", held_out)

    def split(self, name: str) -> list[Problem]:
        held_out = self._held_out[0]
        if name == "test":
            return held_out[: self.config.num_test]
        if name == "validation":
            return held_out[self.config.num_test :]
        if name == "train":
            raise UserError("reasoning_gym has unlimited training problems; say how many, e.g. sft.num_problems=20000")
        raise UserError(f"reasoning_gym has no split {name!r}; it has validation and test")

    def grade(self, problem: Problem, response: str) -> Grade:
        answer = self.answer(response)
        if answer is None:
            return Grade(0.0, "unparseable")
        entry = problem.meta["entry"]
        if problem.answer != gold_of(entry):  # a vote is compared as a text: the score may not look at the gold answer
            score = float(answer == problem.answer)
        else:
            known = self._harmless(problem, answer)
            if known is None:
                return Grade(0.0, "unparseable")
            try:
                score = float(self._generator.score_answer(known, entry))
            except MemoryError:
                raise
            except Exception:  # some scores break at what they cannot read, as a model writes it
                return Grade(0.0, "unparseable")
        return Grade(score, "correct" if score >= 1 else "wrong")

    def answer(self, response: str) -> str | None:
        if self.config.answer_in == "tags":
            before, closed, _ = response.rpartition(CLOSING)
            _, opened, found = before.rpartition(OPENING)
            return found.partition(CLOSING)[0].strip() or None if closed and opened else None
        return last_line(response)

    def _harmless(self, problem: Problem, answer: str) -> str | None:
        """What the package's score may read of it; None for what it would run. A gold answer is the package's own."""
        names = set(re.findall(r"\w+", f"{self.config.dataset} {self.config.options}"))  # composite's are options
        if answer == problem.answer or not names & (FORMULAS | LITERALS):
            return answer
        if names & FORMULAS:
            return as_formula(answer)
        return answer if is_plain(answer) else None

    def segment(self, response: str) -> list[int]:
        return cut_lines(response)

    @cached_property
    def _generator(self) -> Any:
        """Raises UserError where the package, the generator or one of its options is not there."""
        config = self.config
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError('reasoning-gym is needed for this task: pip install "vineppo[reasoning-gym]"')
        from reasoning_gym.composite import DatasetSpec  # pyright: ignore[reportMissingImports]
        from reasoning_gym.factory import DATASETS, create_dataset  # pyright: ignore[reportMissingImports]

        if config.dataset not in DATASETS:
            near = did_you_mean(config.dataset, DATASETS)
            raise UserError(f"task.dataset = {config.dataset!r}: reasoning-gym has no such generator{near}")
        known = {field.name for field in dataclasses.fields(DATASETS[config.dataset][1])} - {"seed", "size"}
        if unknown := sorted(config.options.keys() - known):
            raise UserError(f"task.options.{unknown[0]}: {config.dataset} takes {', '.join(sorted(known)) or 'none'}")
        options = dict(config.options)
        try:
            if config.dataset == "composite":
                options["datasets"] = [DatasetSpec(**spec) for spec in options.get("datasets", ())]
            with seeded(SEED):
                return create_dataset(config.dataset, seed=SEED, size=config.size, **options)
        except Exception as error:  # the package checks its options by assertions, and by what breaks
            raise UserError(
                f"task.dataset = {config.dataset!r}: {describe_error(error)}; change task.options or task.size"
            ) from None

    @cached_property
    def _held_out(self) -> tuple[list[Problem], int]:
        """Test problems and then validation problems, and the first number behind them: all from there is training."""
        config = self.config
        numbers = iter(range(config.size))
        test = self._distinct(numbers, config.num_test, "test", [])
        validation = self._distinct(numbers, config.num_validation, "validation", test)
        return [*test, *validation], next(numbers, config.size)

    def _distinct(self, numbers: Iterator[int], n: int, split: str, others: Sequence[Problem]) -> list[Problem]:
        """n problems whose text is no other's, of as many numbers as that takes."""
        texts = {problem.prompt for problem in others}
        problems: list[Problem] = []
        for number in islice(numbers, PATIENCE * n + EXTRA) if n else ():
            problem = self._problem(split, number)
            if problem.prompt not in texts:
                problems.append(problem)
                texts.add(problem.prompt)
            if len(problems) == n:
                return problems
        if n:
            raise UserError(
                f"{self.config.dataset}: {n} distinct {split} problems asked for, there are {len(problems)}; change "
                f"task.options, or ask for fewer"
            )
        return problems

    def _problem(self, split: str, number: int) -> Problem:
        with seeded(number):
            entry = self._generator[number]
        config, gold = self.config, gold_of(entry)
        if config.answer_in == "last_line" and len(gold.splitlines()) > 1:
            raise UserError(f'{config.dataset} has answers of several lines; set task.answer_in = "tags"')
        template = config.prompt_template or PROMPTS[config.answer_in]
        return Problem(
            id=f"reasoning_gym/{config.dataset}/{split}/{number}",
            prompt=template.replace("{question}", entry["question"].strip()),
            answer=gold,
            solution=gold and (f"<answer>{gold}</answer>" if config.answer_in == "tags" else gold),
            meta={"entry": {key: entry[key] for key in ("question", "answer", "metadata")}},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_generator", "_held_out")}


def gold_of(entry: dict[str, Any]) -> str:
    """Empty where the generator knows none, and only its score tells right from wrong."""
    return str(entry["answer"]).strip() if entry["answer"] is not None else ""
