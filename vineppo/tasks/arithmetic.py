"""The embedded task: chains of arithmetic modulo 10 in which every step depends on the one before.

    9 a+3 b*7 c-4           start at 9, then add 3, times 7, minus 4, always keeping the last digit
    9 a+3=2
    2 b*7=4
    4 c-4=0
    #### 0

One wrong step spoils the answer (every operation is a bijection), so credit matters. The worked solutions come from a
fallible demonstrator, who knows some facts (operation and digit) only at times and otherwise writes one fixed wrong
value and carries on from it: SFT leaves something that reinforcement learning on true answers can find.

Variants with the same tokens differ in where credit is due:

    repair         the demonstrator notices half of his slips at once and does the step again; the last try counts
                       9 a+3=5
                       9 a+3=2
    forks          two of the facts that a right solution needs are unreliable, all others are routine
    distractors    one step, anywhere but first, has a digit of its own and starts the chain anew, so that what came
                   before does not matter; a problem is then 9 a+3 b5*7 c-4
                       9 a+3=2
                       5 b*7=5
                       5 c-4=1
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from vineppo.config import Named
from vineppo.seeding import derive_seed
from vineppo.segments import cut_lines
from vineppo.tasks.answers.numbers import grade_number, hash_answer
from vineppo.tasks.drawn_problems import DrawnProblems
from vineppo.types import Grade, Problem, UserError

LABELS = "abcdefghijklmnopqrstuvwxyz"
OPERATION = re.compile(r"([+*-])(\d+)")
STEP = re.compile(r"([a-z])(\d*)([+*-]\d+)")
NOTICED = 0.5
"""Share of the slips that are repaired."""
NUM_FORKS = 2


class Step(NamedTuple):
    """Of a problem: a+3, or b5*7 where the chain starts anew."""

    label: str
    operation: str
    digit: int | None = None
    """What the chain starts anew with; other steps carry on."""

    @classmethod
    def read(cls, word: str) -> Step:
        label, digit, operation = STEP.fullmatch(word).groups()  # type: ignore[union-attr]
        return cls(label, operation, int(digit) if digit else None)

    def begin(self, carried: int) -> int:
        return carried if self.digit is None else self.digit

    def __str__(self) -> str:
        return f"{self.label}{'' if self.digit is None else self.digit}{self.operation}"


class ArithmeticConfig(Named):
    name: str = "arithmetic"
    variant: Literal["fatal", "repair", "forks", "distractors"] = "fatal"
    num_steps: tuple[int, int] = (8, 12)
    """Fewest and most steps of a problem."""
    modulus: int = Field(default=10, ge=2, le=1000)
    operations: tuple[str, ...] = Field(
        default=("+2", "+3", "+5", "+6", "+8", "-2", "-4", "-7", "-9", "*3", "*7", "*9"), min_length=1
    )
    slip_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the facts that the demonstrator does not know reliably."""
    slip_reliability: tuple[float, float] = (0.25, 0.7)
    """How often the demonstrator gets such a fact right: drawn once per fact from this range."""
    num_validation: int = Field(default=500, ge=1)
    num_test: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def check(self) -> ArithmeticConfig:
        low, high = self.num_steps
        if not 1 <= low <= high <= len(LABELS):
            raise ValueError(f"num_steps must be a range within 1..{len(LABELS)}, got {low}..{high}")
        if self.variant == "forks" and low < NUM_FORKS:
            raise ValueError(
                f'variant = "forks" has {NUM_FORKS} unreliable steps: num_steps must begin there or higher'
            )
        for operation in self.operations:
            match = OPERATION.fullmatch(operation)
            if not match:
                raise ValueError(f"operation {operation!r} is not one of +k, -k, *k")
            if match[1] == "*" and math.gcd(int(match[2]), self.modulus) != 1:
                raise ValueError(
                    f"operation {operation!r} loses information modulo {self.modulus}; use a coprime factor"
                )
        return self


class Arithmetic:
    Config = ArithmeticConfig
    isolate = False

    def __init__(self, config: ArithmeticConfig):
        self.config = config
        self.symbols = (*"0123456789", *(f" {label}" for label in LABELS), *config.operations, "=", "\n", "#### ")
        self._slips = dict(self._draw_slips())
        if config.variant == "forks":
            self._check_forks()
        self._problems = DrawnProblems(
            "arithmetic", self._draw, num_validation=config.num_validation, num_test=config.num_test
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
        return cut_lines(response)

    def judge_segments(self, problem: Problem, segments: Sequence[str]) -> list[bool]:
        """Whether each segment carries on from the one before: with the problem's next operation and its right result,
        after the last of them with the answer, and after that with nothing (an end of text). In `repair` the last
        operation may also be done again."""
        start, *words = problem.prompt.split()
        steps, carried, done, rights = list(map(Step.read, words)), int(start), 0, []
        begun = carried  # what the last step began with
        for segment in segments:
            line = segment.strip("\n")
            if done and self.config.variant == "repair" and line.startswith(f"{begun} {words[done - 1]}="):
                done -= 1
                carried = begun
            if done < len(steps):
                begun = steps[done].begin(carried)
                rights.append(line == self._write(steps[done], begun))
                stated = re.search(r"=(\d+)$", line)
                carried = int(stated[1]) if stated else carried
            else:
                rights.append(line == (f"#### {carried}" if done == len(steps) else ""))
            done += 1
        return rights

    def _draw(self, split: str, seed: int) -> Problem:
        rng = random.Random(seed)
        start = rng.randrange(self.config.modulus)
        steps = self._draw_steps(start, rng)
        true_lines, answer = self._solve(start, steps, slips=None)
        solution = true_lines if split != "train" else self._solve(start, steps, slips=rng)[0]
        prompt = " ".join(map(str, (start, *steps))) + "\n"
        return Problem(f"arithmetic/{split}/{derive_seed(prompt):016x}", prompt, str(answer), solution)

    def _draw_steps(self, start: int, rng: random.Random) -> list[Step]:
        num_steps = rng.randint(*self.config.num_steps)
        if self.config.variant == "forks":
            forks = set(rng.sample(range(num_steps), NUM_FORKS))
            operations, value = [], start
            for i in range(num_steps):
                operations.append(rng.choice(self._operations_at(value, reliable=i not in forks)))
                value = self.apply(operations[-1], value)
        else:
            operations = [rng.choice(self.config.operations) for _ in range(num_steps)]
        digits: list[int | None] = [None] * num_steps
        if self.config.variant == "distractors" and num_steps > 1:
            digits[rng.randrange(1, num_steps)] = rng.randrange(self.config.modulus)
        return list(map(Step, LABELS, operations, digits))

    def _solve(self, start: int, steps: Sequence[Step], slips: random.Random | None) -> tuple[str, int]:
        carried, lines = start, []
        for step in steps:
            value = step.begin(carried)
            results = list(self._tries(step.operation, value, slips))
            lines += [self._write(step, value, result) for result in results]
            carried = results[-1]
        return "".join(f"{line}\n" for line in lines) + f"#### {carried}", carried

    def _tries(self, operation: str, value: int, slips: random.Random | None) -> Iterator[int]:
        """The results that are written, of which the last one counts."""
        right = self.apply(operation, value)
        reliability, wrong = self._slips.get((operation, value), (1.0, right))
        while slips is not None and slips.random() >= reliability:
            yield wrong
            if self.config.variant != "repair" or slips.random() >= NOTICED:
                return
        yield right

    def _write(self, step: Step, value: int, result: int | None = None) -> str:
        """The line of a step that begins with a value; the right one where no result is given."""
        result = self.apply(step.operation, value) if result is None else result
        return f"{value} {step.label}{step.operation}={result}"

    def _operations_at(self, value: int, *, reliable: bool) -> list[str]:
        return [
            operation for operation in self.config.operations if ((operation, value) not in self._slips) == reliable
        ]

    def _check_forks(self) -> None:
        for value in range(self.config.modulus):
            for reliable in (True, False):
                if not self._operations_at(value, reliable=reliable):
                    raise UserError(
                        f"task.slip_share = {self.config.slip_share} leaves no {'' if reliable else 'un'}reliable "
                        f'operation at {value}, of which variant = "forks" needs both kinds; give more operations or '
                        "another share"
                    )

    def apply(self, operation: str, value: int) -> int:
        sign, operand = operation[0], int(operation[1:])
        result = value + operand if sign == "+" else value - operand if sign == "-" else value * operand
        return result % self.config.modulus

    def _draw_slips(self) -> Iterator[tuple[tuple[str, int], tuple[float, int]]]:
        """(operation, value) -> (how often the demonstrator is right, what is written otherwise)."""
        for operation in self.config.operations:
            for value in range(self.config.modulus):
                rng = random.Random(derive_seed("slip", operation, value))
                if rng.random() < self.config.slip_share:
                    offset = rng.randrange(1, self.config.modulus)
                    wrong = (self.apply(operation, value) + offset) % self.config.modulus
                    yield (operation, value), (rng.uniform(*self.config.slip_reliability), wrong)
