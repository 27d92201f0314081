"""Rollouts for the credit inspector: as many as the page can hold, and the credit by comparison within a group."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vineppo.credit.advantages import group_advantages, leave_one_out
from vineppo.machine.files import parse_object
from vineppo.types import UserError

NAME = re.compile(r"iteration-(\d{6,})\.jsonl\.gz", re.ASCII)
MAX_NUMBER = 1e100  # of a reward, a value, ...
BUDGET = 2_500_000  # bytes of compressed rollouts in a page, over all its runs
MAX_ITERATIONS = 50

T = TypeVar("T")


def read_rollouts(folder: Path, budget: int) -> dict[str, Any]:
    """Whole groups, evenly over iterations, of about `budget` bytes. Files that are damaged are left out and named."""
    files = rollout_files(folder)
    chosen = evenly(list(files), MAX_ITERATIONS)
    size = sum(files[iteration].stat().st_size for iteration in chosen)
    share = min(1.0, budget / max(1, size))
    shown: list[dict[str, Any]] = []
    damaged = []
    for iteration in chosen:
        try:
            groups = read_groups(files[iteration])
        except UserError as error:
            damaged.append(str(error))
            continue
        for group in evenly(groups, max(1, int(share * len(groups)))):
            shown += [{"iteration": iteration, **rollout} for rollout in with_group_credit(group)]
    return {"shown": shown, "iterations": list(files), "damaged": damaged}


def rollout_files(folder: Path) -> dict[int, Path]:
    """Iteration -> its file, in order."""
    named = ((NAME.fullmatch(path.name), path) for path in folder.glob("iteration-*.jsonl.gz"))
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def read_groups(path: Path) -> list[list[dict[str, Any]]]:
    """Siblings share a problem; a problem comes up once in an iteration."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for rollout in rollouts_of(path, f"rollouts/{path.name}"):
        groups.setdefault(rollout["problem"], []).append(rounded(rollout))
    return list(groups.values())


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


def check(rollout: dict[str, Any], place: str) -> dict[str, Any]:
    """Everything that is shown of it is there and fits together."""
    for key, is_right, what in FIELDS:
        if not is_right(rollout.get(key)):
            raise UserError(f"{place}: the field {key!r} is not {what}")
    num_segments = len(rollout["segments"])
    if not num_segments:
        raise UserError(f"{place}: the response has no segments")
    for key, length in (("advantages", 0), ("values", 1), ("vines", 0), ("standard_errors", 0), ("num_tokens", 0)):
        if rollout.get(key) is not None and len(rollout[key]) != num_segments + length:
            raise UserError(f"{place}: {key} has {len(rollout[key])} entries for {num_segments} segments")
    return rollout


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MAX_NUMBER  # nan is not


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
    ("num_tokens", is_list_of(is_number, optional=True), "a list of numbers"),
    ("vines", is_list_of(is_list_of(is_vine), optional=True), "a list of lists of vines"),
)


def rounded(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Four digits are more than the page shows, and a third of the size. Files of earlier runs lack the last two."""
    numbers = {
        key: rollout.get(key) and [x if x is None else round(x, 4) for x in rollout[key]]
        for key in ("advantages", "values", "standard_errors")
    }
    return {**rollout, **numbers, "vines": rollout.get("vines")}


def with_group_credit(group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By GRPO in standard deviations of the group, and before that division; by RLOO. None where nobody is compared."""
    rewards = [rollout["reward"] for rollout in group]
    centred = partial(group_advantages, divide_by_std=False)
    formulas = {"grpo": group_advantages, "centred": centred, "rloo": leave_one_out}
    credit = {name: group_credit(rewards, formula) for name, formula in formulas.items()}
    return [{**rollout, **{name: credit[name][g] for name in credit}} for g, rollout in enumerate(group)]


def group_credit(rewards: Sequence[float], formula: Callable[[Sequence[float]], list[float]]) -> list[float | None]:
    if len(rewards) < 2:
        return [None] * len(rewards)
    advantages = formula(rewards) if max(rewards) > min(rewards) else [0.0] * len(rewards)
    return [round(advantage, 4) for advantage in advantages]


def evenly(items: Sequence[T], n: int) -> list[T]:
    """n of them (or all), spread evenly, the first and the last included."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, n - 1))] for i in range(n)]
