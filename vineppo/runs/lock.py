"""One process at a time in a folder. The kernel keeps the lock, and releases it however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vineppo.machine.terminal import printable
from vineppo.types import UserError

LOCK = "vineppo.lock"
"""Holds its holder's process id. It is removed in the end, and one that is left behind locks nothing."""


@contextmanager
def lock_folder(folder: Path, echo: Callable[[str], None]) -> Iterator[None]:
    """Makes the folder if need be; raises UserError where another process holds it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = acquire(folder, echo)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: whoever has opened it before finds it gone
        os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # nothing came of it


def acquire(folder: Path, echo: Callable[[str], None]) -> int:
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = printable(os.read(descriptor, 20).decode("ascii", "replace").strip()) or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by another process (pid {holder}); wait for its end, or choose another --out"
            ) from None
        except OSError as error:
            echo(f"{path}: cannot be locked ({error.strerror}); see to it that no second process uses this folder")
        if is_still(path, descriptor):
            break
        os.close(descriptor)  # its last holder has just removed it
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
