"""Mathematics with a Python tool: the policy writes a program, sees what it prints, and goes on.

    37, times 482, plus 91          the problem
    ```python                       a turn with a program in it
    print(37 * 482)
    ```
    ```output                       what the environment replies
    17834
    ```
    #### 17925                      a turn without one is the last, and has the answer

The form is that of ToRA (Gou et al. 2023). Every program is run by itself, in the sandbox: nothing is left of those
before it. Problems are GSM8K's, from a path, or drawn: chains of operations on numbers of several digits.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from vineppo.config import Config, Named
from vineppo.sandbox import Finished, Limits, Sandbox
from vineppo.sandbox.sandbox import Choice
from vineppo.seeding import derive_seed
from vineppo.tasks.answers.numbers import gold_number, grade_number, hash_answer
from vineppo.tasks.dataset import Record
from vineppo.tasks.drawn import DrawnProblems
from vineppo.tasks.problem_set import ProblemSet, containing
from vineppo.tasks.programs.reading import cut_statements, find_block
from vineppo.transcript import Transcript, turns_of
from vineppo.types import Grade, Problem

OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "plus": ("+", lambda a, b: a + b),
    "minus": ("-", lambda a, b: a - b),
    "times": ("*", lambda a, b: a * b),
}
UNPRINTABLE = re.compile(r"[^\n -~]")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object, which differs from run to run."""


class ChainConfig(Config):
    """Of problems that are drawn."""

    num_operations: tuple[int, int] = (1, 2)
    """Fewest and most of them in a problem; each is a program of its own."""
    num_digits: int = Field(default=3, ge=1, le=9)
    slip_share: float = Field(default=0.2, ge=0, le=1)
    """How often the demonstrator of the training problems writes another operation."""
    num_validation: int = Field(default=500, ge=1)
    num_test: int = Field(default=1000, ge=1)


class PythonToolConfig(Named):
    name: str = "python_tool"
    path: str | None = None
    """JSONL or Parquet file with fields question and answer, as GSM8K has them; without one problems are drawn."""
    subset: str | None = None
    """Of a hub data set; openai/gsm8k wants "main"."""
    prompt_template: Annotated[str, containing("{question}")] = (
        "{question}\n\nTo compute, write a ```python block that prints, and end your turn: you will see the output. "
        "When you are done, write #### and the number.\n"
    )
    """For problems from a file."""
    num_validation: int = Field(default=373, ge=0)
    """Training problems held out as the validation split; of problems from a file."""
    max_output_chars: int = Field(default=200, ge=10)
    """Of what a program prints, in the reply."""
    drawn: ChainConfig = ChainConfig()
    sandbox: Choice = "auto"
    """What locks programs in; "none" runs what the model writes with your own rights."""
    limits: Limits = Limits()


class PythonTool:
    Config = PythonToolConfig
    isolate = True

    def __init__(self, config: PythonToolConfig):
        self.config = config
        self.symbols = symbols()
        self.sandbox = Sandbox.make(config.sandbox, config.limits)
        self._problems: ProblemSet | DrawnProblems
        if config.path is None:
            sizes = {"num_validation": config.drawn.num_validation, "num_test": config.drawn.num_test}
            self._problems = DrawnProblems("python_tool", self._sample_problem, **sizes)
        else:
            self._problems = ProblemSet(
                "python_tool",
                config.path,
                ("question", "answer"),
                self._read,
                num_validation=config.num_validation,
                subset=config.subset,
            )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        program = find_block(transcript.actions[-1])
        if program is None:
            return None
        return show(describe(run(self.sandbox, program), self.config.max_output_chars))

    def grade(self, problem: Problem, response: str) -> Grade:
        return grade_number(problem.answer, self.answer(response))

    def answer(self, response: str) -> str | None:
        """Of the policy's last turn: what a program prints is no answer."""
        return hash_answer(turns_of(response)[-1])

    def segment(self, response: str) -> list[int]:
        return cut_statements(response)

    def _read(self, split: str, problem_id: str, record: Record) -> Problem:
        _, fields = record
        prompt = self.config.prompt_template.replace("{question}", fields["question"].strip())
        return Problem(problem_id, prompt, gold_number(fields["answer"]))

    def _sample_problem(self, split: str, seed: int) -> Problem:
        config, rng = self.config.drawn, random.Random(seed)
        low, high = 10 ** (config.num_digits - 1), 10**config.num_digits - 1
        names = [rng.choice(list(OPERATIONS)) for _ in range(rng.randint(*config.num_operations))]
        first, *numbers = (rng.randint(low, high) for _ in range(len(names) + 1))
        prompt = f"{first}{''.join(f', {name} {n}' for name, n in zip(names, numbers, strict=True))}\n"
        right = written = first
        turns = []
        for name, number in zip(names, numbers, strict=True):
            slips = split == "train" and rng.random() < config.slip_share
            sign, apply = OPERATIONS[rng.choice(list(OPERATIONS)) if slips else name]
            turns.append(f"```python\nprint({written} {sign} {number})\n```\n")
            written, right = apply(written, number), OPERATIONS[name][1](right, number)
            turns.append(show(str(written)))
        solution = Transcript.of([*turns, f"#### {written}\n"])
        return Problem(f"python_tool/{split}/{derive_seed(prompt):016x}", prompt, str(right), solution)


@lru_cache(maxsize=10_000)
def run(sandbox: Sandbox, program: str) -> Finished:
    """Vines from one turn ask for the same program again."""
    return sandbox.run(program)


def describe(finished: Finished, max_chars: int) -> str:
    """What it printed, then what went wrong: the last line of the traceback, or the limit that ended it."""
    said = finished.stdout.rstrip("\n")
    if len(said) > max_chars:
        said = f"{said[:max_chars]}..."
    if finished.outcome == "timeout":
        wrong = "TimeoutError: the program took too long"
    elif finished.outcome == "killed":
        wrong = "SystemError: the program was killed"
    else:
        wrong = "" if finished.succeeded else finished.errors.strip().rpartition("\n")[2][:max_chars]
    text = "\n".join(filter(None, [said, wrong])) or "(no output)"
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], ADDRESS.sub(" at 0x...", text))


def show(output: str) -> str:
    return f"```output\n{output}\n```\n"


def symbols() -> list[str]:
    """Whatever a program prints can be written with them; what every solution repeats has one token."""
    words = [f", {name} " for name in OPERATIONS] + [f" {sign} " for sign, _ in OPERATIONS.values()]
    frames = ["```python\nprint(", ")\n```\n", "```output\n", "\n```\n", "#### "]
    characters = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    return [*characters, *words, *frames]
