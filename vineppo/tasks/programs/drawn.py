"""Small functions to be written: from words, from examples, or both.

    plus 3, times 2                  def f(x):
    f(1)=8                               x += 3
    f(-4)=-2                             x *= 2
                                         return x

Every statement but the last changes x by one operation. The demonstrator of the training problems now and then writes
another operation (`slip_share`), so SFT leaves something that the tests can teach.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from vineppo.config import Config
from vineppo.seeding import derive_seed
from vineppo.tasks.programs.unit_tests import UnitTests, make_call
from vineppo.types import Problem

HEAD, LAST = "def f(x):\n", "    return x\n"
OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "plus": ("x += {}", lambda x, k: x + k),
    "minus": ("x -= {}", lambda x, k: x - k),
    "times": ("x *= {}", lambda x, k: x * k),
    "modulo": ("x %= {}", lambda x, k: x % k),
    "over": ("x //= {}", lambda x, k: x // k),
    "at least": ("x = max(x, {})", max),
    "at most": ("x = min(x, {})", min),
    "from": ("x = {} - x", lambda x, k: k - x),
    "if odd plus": ("if x % 2: x += {}", lambda x, k: x + k if x % 2 else x),
}
"""In words -> the statement, and what it does to x."""
LARGEST = 20
"""Of the inputs that a program is tested on, from -20."""


class DrawnConfig(Config):
    num_operations: tuple[int, int] = (2, 4)
    """Fewest and most statements before the last."""
    operations: tuple[str, ...] = tuple(OPERATIONS)
    max_number: int = Field(default=9, ge=2, le=999)
    shown: Literal["words", "examples", "both"] = "words"
    num_examples: int = Field(default=4, ge=1, le=20)
    """Shown in the prompt; they are tests too."""
    num_tests: int = Field(default=6, ge=1, le=20)
    """Besides the examples."""
    slip_share: float = Field(default=0.2, ge=0, le=1)
    num_validation: int = Field(default=500, ge=1)
    num_test: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def check(self) -> DrawnConfig:
        low, high = self.num_operations
        if not 1 <= low <= high <= 20:
            raise ValueError(f"num_operations must be a range within 1..20, got {low}..{high}")
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not self.operations:
            raise ValueError(f"operations must be some of {', '.join(OPERATIONS)}, got {', '.join(unknown) or 'none'}")
        return self


class Operation(NamedTuple):
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} {self.number}"

    @property
    def statement(self) -> str:
        return f"    {OPERATIONS[self.name][0].format(self.number)}\n"

    def apply(self, x: int) -> int:
        return OPERATIONS[self.name][1](x, self.number)


def symbols() -> list[str]:
    """One token for each word, each part of a statement, each character of a number."""
    parts = [part for statement, _ in OPERATIONS.values() for part in f"    {statement}\n".split("{}")]
    return [*"0123456789", "-", ", ", " ", "\n", "f(", ")=", HEAD, LAST, *parts, *OPERATIONS]


def sample_problem(config: DrawnConfig, split: str, seed: int) -> Problem:
    rng = random.Random(seed)
    operations = [sample_operation(config, rng) for _ in range(rng.randint(*config.num_operations))]
    inputs = rng.sample(range(-LARGEST, LARGEST + 1), config.num_examples + config.num_tests)
    words = f"{', '.join(map(str, operations))}\n"
    examples = "".join(f"f({x})={run(operations, x)}\n" for x in inputs[: config.num_examples])
    prompt = {"words": words, "examples": examples, "both": words + examples}[config.shown]
    written = [
        sample_operation(config, rng) if split == "train" and rng.random() < config.slip_share else operation
        for operation in operations
    ]
    tests = UnitTests(calls=[make_call("f", [x], run(operations, x)) for x in inputs])
    solution = f"{HEAD}{''.join(operation.statement for operation in written)}{LAST}"
    return Problem(f"code/{split}/{derive_seed(prompt):016x}", prompt, tests.write(), solution)


def sample_operation(config: DrawnConfig, rng: random.Random) -> Operation:
    return Operation(rng.choice(config.operations), rng.randint(2, config.max_number))


def run(operations: Sequence[Operation], x: int) -> int:
    for operation in operations:
        x = operation.apply(x)
    return x
