"""Files that are read again: written so that a kill leaves the old one or the new one, read so that damage is named.

A write goes to a file beside, is synced and renamed. A line that is appended is synced. Whoever reads what may be
torn, edited or somebody else's gets a UserError that names the file and the line.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vineppo.types import UserError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PART = ".part"
"""Ends the name of a file that is being written; one that is left behind means nothing."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A write that fails does not say to which file; here it does."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces the file in one step, with the permissions that any new file gets."""
    refuse_special(path)
    part = path.with_name(path.name + PART)
    try:
        with naming(path), part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1) + "\n")


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """As one line of JSON, on the disk when this returns."""
    with naming(path), path.open("ab") as file:
        file.write(json.dumps(values).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def check_file(path: Path) -> None:
    """Raises UserError now, and not after the work, where `write_file` could not write this."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    refuse_special(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    check_access(path if path.exists() else path.parent)


def check_folder(path: Path) -> None:
    """The same for a folder, which may yet have to be made."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{path}: {nearest} is a file; name a folder")
    check_access(nearest)


def check_access(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written to; name another place")


def refuse_special(path: Path) -> None:
    """A pipe or a device may have no end, and is not to be replaced."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is a pipe or a device, not a file")


def sync(path: Path) -> None:
    """A file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """Raises UserError where it is no text; an OSError is the caller's."""
    refuse_special(path)
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file."""
    return parse_object(read_text(path), str(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The object on every whole line."""
    return [parse_object(line, f"{path}:{number}") for number, line in enumerate(whole_lines(path), 1)]


def whole_lines(path: Path) -> list[str]:
    """What follows the last line break is a line that a kill tore, or nothing, and is left out."""
    *lines, _ = read_text(path).split("\n")
    return lines


def parse_object(text: str, place: str) -> dict[str, Any]:
    """A JSON object; `place` is where it stands, for the error."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets of thousands of levels
        raise UserError(f"{place}: not valid JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value
