"""The process behind `grading.Worker`: receives a task, then answers every (problem, response) with a Grade.

It dies with its parent, with its memory limit, or when its parent kills it; nothing here waits or retries.
"""

from __future__ import annotations

import ctypes
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from vineppo.types import Grade, Task

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(descriptor: int, memory_mb: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(descriptor)
    task: Task = pickle.loads(connection.recv_bytes())
    prepare = getattr(task, "prepare", None)
    if prepare is not None:
        prepare()
    limit_memory(memory_mb)
    connection.send("ready")
    while True:
        try:
            problem, response = connection.recv()
        except EOFError:
            return
        try:
            grade = task.grade(problem, response)
        except Exception:
            grade = Grade(0.0, "crashed")
        connection.send(grade)


def limit_memory(memory_mb: int) -> None:
    """Lets the address space grow by this much from here."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
