"""How many cores and how much memory this process may really use: a container often gives less than the machine has.

Linux limits processes by control groups, which lie inside each other; every one on the way up counts. Version 2 keeps
all limits in one tree, version 1 one tree for each kind, and both may be mounted at once (`man 7 cgroups`).
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def available_cores(root: Path = ROOT) -> int:
    """Whole cores, at least one: those that the process may run on, or fewer where its groups' time is limited."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *cpu_limits(root)])))


def available_memory_bytes(root: Path = ROOT) -> int:
    """What the process may ever hold, whether or not it is free right now."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *memory_limits(root)])


def peak_memory_mb() -> float:
    """Largest resident size of this process and of its finished children, in MiB (Linux reports KiB)."""
    usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usages) / (1024 if sys.platform != "darwin" else 1 << 20)


def cpu_limits(root: Path) -> Iterator[float]:
    """In cores."""
    for group in groups(root, "cpu"):
        v2 = words(group / "cpu.max")
        v1 = words(group / "cpu.cfs_quota_us") + words(group / "cpu.cfs_period_us")
        for limit in (v2, v1):
            if len(limit) == 2 and all(word.isdecimal() and int(word) > 0 for word in limit):  # not "max", not -1
                yield int(limit[0]) / int(limit[1])


def memory_limits(root: Path) -> Iterator[int]:
    """In bytes. Above `memory.high` a group is slowed down until it gives memory back, so it is a limit too."""
    for group in groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = words(group / name)
            if len(limit) == 1 and limit[0].isdecimal():
                yield int(limit[0])


def groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups that may limit this, from its own up to the topmost that can be seen."""
    tree = root / "sys/fs/cgroup"
    for line in text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # A path that is seen from inside of a container may not exist there, or begin with /.. ; its parents may.
        group = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for mount in (tree / controller, tree / controllers) if controllers else (tree, tree / "unified"):
            yield from (mount / inside for inside in (group, *group.parents))


def words(path: Path) -> list[str]:
    return text(path).split()


def text(path: Path) -> str:
    """Empty where there is no such file: on other systems, and of limits that this group does not have."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
