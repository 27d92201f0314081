"""A sandbox: the limits of a program, and the backend that locks it in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from vineppo.config import Config
from vineppo.sandbox.backends import Backend, is_possible, make_command
from vineppo.sandbox.process import Outcome, Process, SandboxError
from vineppo.types import UserError

Choice = Literal["auto", "bwrap", "landlock", "none"]
WEAKER = (
    "bubblewrap does not work here, so programs are locked in by Landlock and a filter of system calls alone: they see "
    "that other files and processes exist (docs/sandbox.md)"
)


class Limits(Config):
    """Of one program."""

    cpu_s: int = Field(default=2, ge=1, le=3600)
    """Processor time, the interpreter's start included."""
    timeout_s: float = Field(default=20.0, gt=0, le=3600)
    """On the clock: for what sleeps instead of computing."""
    memory_mb: int = Field(default=256, ge=64)
    output_kb: int = Field(default=64, ge=1, le=65_536)


@dataclass(frozen=True)
class Finished:
    """What a program said, and how it ended.

    `outcome` is ended, timeout (on the clock or of the processor), output (it said too much) or killed (by a signal).
    """

    stdout: str
    errors: str
    outcome: Outcome
    exit_code: int

    @property
    def succeeded(self) -> bool:
        return self.outcome == "ended" and self.exit_code == 0


@dataclass(frozen=True)
class Sandbox:
    """Runs Python programs, each in a process of its own that reads its input, writes its output and does nothing else.

    >>> Sandbox(choose_backend("auto"), Limits()).run("print(input() * 2)", stdin="ab").stdout
    'abab\\n'
    """

    backend: Backend
    limits: Limits

    @classmethod
    def make(cls, choice: Choice, limits: Limits) -> Sandbox:
        """`auto` is the strongest backend that works here. Raises UserError where none does."""
        backends: tuple[Backend, ...] = ("bwrap", "landlock") if choice == "auto" else (choice,)
        for backend in backends:
            if (sandbox := cls(backend, limits)).works():
                if choice == "auto" and backend == "landlock":
                    warnings.warn(WEAKER, stacklevel=2)
                return sandbox
        raise UserError(
            f"task.sandbox = {choice!r}: no program can be locked in here; install bubblewrap (apt-get install "
            'bubblewrap, or pip install "vineppo[sandbox]"), or set task.sandbox = "none" to run what the model writes '
            "with your own rights"
        )

    def works(self) -> bool:
        """Whether a first program runs."""
        try:
            return is_possible(self.backend) and self.run("print('it works')").stdout == "it works\n"
        except (SandboxError, OSError):
            return False

    def run(self, program: str, *, stdin: str = "") -> Finished:
        with self.start(program) as process:
            process.send(stdin)
            process.close_input()
            stdout = process.read_all()
            outcome, code = process.end()
            return Finished(stdout, process.errors, outcome, code)

    def start(self, program: str, *, timeout_s: float | None = None) -> Process:
        """To talk with it line by line; `timeout_s` is another limit than that of `limits`."""
        limits = self.limits
        command = make_command(self.backend, memory=limits.memory_mb << 20, cpu_s=limits.cpu_s)
        timeout_s = limits.timeout_s if timeout_s is None else timeout_s
        return Process(command, program, timeout_s=timeout_s, max_output=limits.output_kb << 10)
