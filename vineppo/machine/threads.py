"""How many threads compute, and how they wait for each other.

The threads of a computation meet some ten thousand times a second. By default the first one there spins for
milliseconds: nothing is lost on an idle machine, but where other processes want the cores, it spins away the time that
the last one waits for. A short spin, about as long as falling asleep and waking up would take, is as fast on an idle
machine and bearable on a busy one. It changes no number.
"""

from __future__ import annotations

import os

from vineppo.machine.limits import available_cores

SPIN = {
    "GOMP_SPINCOUNT": "1000",  # GCC's OpenMP, in turns of a loop: some ten microseconds
    "KMP_BLOCKTIME": "1",  # LLVM's and Intel's, in milliseconds
}


def spin_briefly() -> None:
    """Says so to the OpenMP of this process and of its children, unless the user has said how to wait.

    OpenMP reads the variables once, when PyTorch is imported. Where that has happened before, nothing changes here.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SPIN.items():
            os.environ.setdefault(name, value)


def waiting() -> str:
    """What OpenMP is told of it."""
    names = ("OMP_WAIT_POLICY", *SPIN)
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


def fair_threads(num_processes: int = 1) -> int:
    """For each of so many processes: what the user has said (OMP_NUM_THREADS), or an equal part of the usable cores."""
    requested = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if requested.isdecimal() and int(requested) > 0:
        return int(requested)
    return max(1, available_cores() // num_processes)
