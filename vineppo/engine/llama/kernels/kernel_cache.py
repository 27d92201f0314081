"""Where compiled libraries are kept from one start to the next, so that only our own ones are ever loaded.

Loading a library runs its code, and a damaged one kills the process. So the folder and the file must belong to this
user (or root), nobody else may be able to write them, and the file's name holds a checksum of its content.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from vineppo.machine.files import PART, sync


def cache_folder() -> Path:
    """A folder that only this user can write; made if it is not there. OSError says why there is none."""
    home = cache_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = home / "vineppo"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder = folder.resolve()  # what is checked is what is used, wherever a link points later
    for place in (folder, *folder.parents):
        found = place.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{place} belongs to another user")
        if place == folder and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"others may write to {place} (chmod go-w it)")
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise PermissionError(f"others may replace what is in {place}")
    return folder


def cache_home() -> Path:
    """XDG_CACHE_HOME where it is absolute, as its specification says, or ~/.cache."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        home = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from None
    if not home.is_absolute():
        raise FileNotFoundError(f"the home folder {str(Path.home())!r} is not absolute")
    return home


def find_kept(folder: Path, name: str) -> Path | None:
    """The library kept under this name, if it is whole and ours. What is not is removed, to be made again."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        with suppress(OSError):
            if path.name == file_name(name, read_ours(path)):
                return path
        with suppress(OSError):
            path.unlink()
    return None


def keep(folder: Path, name: str, content: bytes) -> Path:
    """Appears whole or not at all, also where several processes keep it at once or the power fails."""
    path = folder / file_name(name, content)
    descriptor, part = tempfile.mkstemp(dir=folder, prefix=name, suffix=PART)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
    sync(folder)
    return path


def file_name(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def read_ours(path: Path) -> bytes:
    """OSError where it is no plain file, another user's, or others may write it."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} is not ours")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"others may write {path}")
        return file.read()
