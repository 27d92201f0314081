"""A task whose grading does whatever the response says; in its own module so that worker processes can import it."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path

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
        return []

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
            try:
                while True:
                    hoard.append(mmap.mmap(-1, 1 << 24))  # untouched: it takes memory and no time
            except OSError:
                raise MemoryError from None
        elif response == "leak":
            LEFT_BEHIND.append(bytearray(100 << 20))
            response = problem.answer
        elif response == "threads":
            threads = [threading.Thread(target=bytearray, args=(1 << 20,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            response = problem.answer
        elif response == "doze":  # far longer than the limit, but not of processor time
            time.sleep(0.8)
            response = problem.answer
        elif response == "print":
            print("\x1b[2J", flush=True)
            print("\x1b[2J", file=sys.stderr, flush=True)
        elif response == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif response == "signals":
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            response = problem.answer
        elif response.startswith(("killed once ", "stopped once ")):  # as from outside
            file = Path(response.split(maxsplit=2)[2])
            if not file.exists():
                file.touch()
                os.kill(os.getpid(), signal.SIGKILL if response.startswith("killed") else signal.SIGSTOP)
            response = problem.answer
        elif response == "nonsense":
            return "correct"  # type: ignore[return-value]
        elif response.startswith("partial"):
            return Grade(0.25, "correct")
        right = response == problem.answer
        return Grade(float(right), "correct" if right else "wrong")
