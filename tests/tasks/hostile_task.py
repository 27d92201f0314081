"""A task whose grading does whatever the response says; in its own module so that worker processes can import it."""

from __future__ import annotations

import os
import time

from vineppo.types import Grade, Problem


class HostileTask:
    def __init__(self, *, isolate: bool = True):
        self.isolate = isolate
        self.num_graded = 0

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return [Problem(f"hostile/{i}", "", str(i)) for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(10, seed=0)

    def answer(self, response: str) -> str | None:
        return response

    def segment(self, response: str) -> list[int]:
        return []

    def prepare(self) -> None:
        time.sleep(0.3)

    def grade(self, problem: Problem, response: str) -> Grade:
        self.num_graded += 1
        if response == "sleep":
            time.sleep(3600)
        elif response == "spin":
            pow(3, 10**9)  # one call in C that never looks at signals
        elif response == "exit":
            os._exit(1)
        elif response == "raise":
            raise ZeroDivisionError("hostile")
        elif response == "quit":
            raise SystemExit("hostile")
        elif response == "memory":
            hoard = []
            while True:
                hoard.append(bytearray(1 << 24))
        elif response == "nonsense":
            return "correct"  # type: ignore[return-value]
        elif response.startswith("partial"):
            return Grade(0.25, "correct")
        right = response == problem.answer
        return Grade(float(right), "correct" if right else "wrong")
