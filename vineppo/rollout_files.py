"""Files of rollouts, read: what `rollouts.save_rollouts` wrote, line by line, and checked."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vineppo.machine.files import parse_object
from vineppo.types import UserError

NAME = re.compile(r"iteration-(\d{6,})\.jsonl\.gz", re.ASCII)
MAX_NUMBER = 1e100  # of a reward, a value, ...


def rollout_files(folder: Path) -> dict[int, Path]:
    """Iteration -> its file, in order."""
    named = ((NAME.fullmatch(path.name), path) for path in folder.glob("iteration-*.jsonl.gz"))
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def rollouts_of(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Checked, one by one. Raises UserError with the line; the file is called `name` in it."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                place = f"{name}:{number}"
                yield check(parse_object(line, place), place)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{name}: torn or damaged after line {number} ({error})") from None


PER_SEGMENT = {"advantages": 0, "values": 1, "vines": 0, "standard_errors": 0, "num_vines": 0, "num_tokens": 0}
"""Columns, and how many entries they have beyond the number of segments."""


def check(rollout: dict[str, Any], place: str) -> dict[str, Any]:
    """Everything that is shown of it is there and fits together."""
    for key, is_right, what in FIELDS:
        if not is_right(rollout.get(key)):
            raise UserError(f"{place}: the field {key!r} is not {what}")
    num_segments = len(rollout["segments"])
    if not num_segments:
        raise UserError(f"{place}: the response has no segments")
    for key, length in PER_SEGMENT.items():
        if rollout.get(key) is not None and len(rollout[key]) != num_segments + length:
            raise UserError(f"{place}: {key} has {len(rollout[key])} entries for {num_segments} segments")
    return rollout


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MAX_NUMBER  # nan is not


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def is_list_of(*is_right: Callable[[Any], bool], optional: bool = False) -> Callable[[Any], bool]:
    """Each entry right in one of these ways."""

    def is_it(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, list) and all(any(right(entry) for right in is_right) for entry in value)

    return is_it


def is_vine(value: Any) -> bool:
    return isinstance(value, dict) and is_text(value.get("text")) and is_number(value.get("reward"))


def is_none(value: Any) -> bool:
    return value is None


FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *((key, is_text, "a text") for key in ("problem", "prompt", "answer", "verdict", "finish_reason")),
    ("reward", is_number, "a number"),
    ("segments", is_list_of(is_text), "a list of texts"),
    ("advantages", is_list_of(is_number), "a list of numbers"),
    ("values", is_list_of(is_number, optional=True), "a list of numbers"),
    ("standard_errors", is_list_of(is_number, is_none, optional=True), "a list of numbers"),
    *(
        (key, is_list_of(is_count, optional=True), "a list of counts")
        for key in ("num_tokens", "num_vines", "token_ids")
    ),
    ("vines", is_list_of(is_list_of(is_vine), optional=True), "a list of lists of vines"),
)
