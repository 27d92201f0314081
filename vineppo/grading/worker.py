"""The process behind `pool.Worker`: receives a task, then answers every (problem, response, wanted).

It dies with its parent, with its limits, or when its parent kills it; nothing here waits or retries.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from vineppo.grading.finding import READY, TIME_IS_UP, answer, write_finding
from vineppo.parts import run_code
from vineppo.protocols import Prepares, Task

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(descriptor: int, timeout_s: float, memory_mb: int) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the parent's to handle; a terminal sends them to all
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(TIME_IS_UP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [TIME_IS_UP])
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(descriptor)
    try:
        codes, task_bytes = pickle.loads(connection.recv_bytes())
        for code in codes:
            run_code(code)
        task: Task = pickle.loads(task_bytes)
        if isinstance(task, Prepares):
            task.prepare()
        limit_memory(memory_mb)
        connection.send_bytes(READY)
        be_silent()
        while True:
            problem, response, wanted = connection.recv()
            signal.setitimer(signal.ITIMER_PROF, timeout_s)
            finding = answer(task, problem, response, wanted)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(write_finding(finding))
    except (EOFError, ConnectionError):  # the parent is gone
        return
    except MemoryError:  # outside of an answer: as if the kernel had run out of it, and no answer's fault
        signal.raise_signal(signal.SIGKILL)


def limit_memory(memory_mb: int) -> None:
    """Lets the address space grow by this much from here, so that the libraries do not count. Leaves no core files."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def be_silent() -> None:
    """What a library says of an answer is neither the program's output nor safe on a terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("a process in which vineppo grades answers; runs start it by themselves, with a pipe and two limits")
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
