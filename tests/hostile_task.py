"""A task whose grading does whatever the response says; in its own module so that worker processes can import it."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vineppo.types import Grade, Problem

LEFT_BEHIND: list[object] = []


class HostileTask:
    """The first starts end as `bad_starts` says, "killed" or "exit"; `folder` is where they are counted."""

    def __init__(
        self,
        *,
        isolate: bool = True,
        busy_start_s: float = 0.0,
        bad_starts: tuple[str, ...] = (),
        folder: Path = Path(),
    ):
        self.isolate, self.busy_start_s, self.bad_starts, self.folder = isolate, busy_start_s, bad_starts, folder
        self.num_graded = 0

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return [Problem(f"hostile/{i}", "", str(i)) for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(10, seed=0)

    def answer(self, response: str) -> str | None:
        return response

    def segment(self, response: str) -> list[int]:
        return [response.index("|")] if "|" in response else []

    def prepare(self) -> None:
        LEFT_BEHIND.append(mmap.mmap(-1, 300 << 20))  # what a library takes is no answer's fault
        end_of_start = time.process_time() + self.busy_start_s
        while time.process_time() < end_of_start:
            pass
        for i, end in enumerate(self.bad_starts):
            if not (self.folder / str(i)).exists():
                (self.folder / str(i)).touch()
                if end == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                sys.exit("no\x1b[2Jthing works\n")

    def grade(self, problem: Problem, response: str) -> Grade:
        self.num_graded += 1
        command, _, argument = response.partition(": ")
        if command in SPECIAL:
            return SPECIAL[command](problem, argument)
        right = response == problem.answer
        return Grade(float(right), "correct" if right else "wrong")


def after(action: Callable[[str], object]) -> Callable[[Problem, str], Grade]:
    """Correct, if it comes to that."""

    def grade(problem: Problem, argument: str) -> Grade:
        action(argument)
        return Grade(1.0, "correct")

    return grade


def run_out_of_memory(_: str) -> None:
    hoard = []
    try:
        while True:
            hoard.append(mmap.mmap(-1, 1 << 24))  # untouched: it takes memory and no time
    except OSError:
        raise MemoryError from None


def start_threads(_: str) -> None:
    threads = [threading.Thread(target=bytearray, args=(1 << 20,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def print_controls(_: str) -> None:
    print("\x1b[2J", flush=True)
    print("\x1b[2J", file=sys.stderr, flush=True)


def send_signals(_: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)


def once(number: int) -> Callable[[str], None]:
    """As from outside: the first worker that comes by the file gets the signal."""

    def action(file: str) -> None:
        if not Path(file).exists():
            Path(file).touch()
            os.kill(os.getpid(), number)

    return action


def fail(error: BaseException) -> Callable[[str], None]:
    def action(_: str) -> None:
        raise error

    return action


SPECIAL: dict[str, Callable[[Problem, str], Any]] = {
    "sleep": after(lambda _: time.sleep(3600)),
    "spin": after(lambda _: pow(3, 10**9)),  # one call in C that never looks at signals
    "doze": after(lambda _: time.sleep(0.8)),  # far longer than the limit, but not of processor time
    "exit": after(lambda _: os._exit(1)),
    "raise": after(fail(ZeroDivisionError("hostile"))),
    "quit": after(fail(SystemExit("hostile"))),
    "memory": after(run_out_of_memory),
    "leak": after(lambda _: LEFT_BEHIND.append(bytearray(100 << 20))),
    "threads": after(start_threads),
    "print": after(print_controls),
    "die": after(lambda _: os.kill(os.getpid(), signal.SIGKILL)),
    "signals": after(send_signals),
    "killed once": after(once(signal.SIGKILL)),
    "stopped once": after(once(signal.SIGSTOP)),
    "nonsense": lambda problem, argument: "correct",
    "partial": lambda problem, argument: Grade(0.25, "correct"),
    "negative": lambda problem, argument: Grade(-2.5, "wrong"),
    "segments": lambda problem, argument: Grade(0.25, "wrong", (-0.5, 0.75)),
    "named": lambda problem, argument: Grade(0.25, "correct", named_rewards={"half": 0.125, "whole": 0.25}),
}
"""By what the response begins with, up to a colon."""
