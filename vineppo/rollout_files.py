"""Files of rollouts: written with their credit, a rollout per line, and read line by line, checked."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from vineppo.environment import Environment
from vineppo.episode import runs_of
from vineppo.machine.files import parse_object, write_file
from vineppo.rollouts import earned_before
from vineppo.segments import segment_texts
from vineppo.transcript import turns_of
from vineppo.types import Credit, Group, Rollout, UserError, ValueEstimate

NAME = re.compile(r"iteration-(\d{6,})\.jsonl\.gz", re.ASCII)
MAX_NUMBER = 1e100  # of a reward, a value, ...


def save_rollouts(
    path: Path,
    groups: Sequence[Group],
    credits: Sequence[Sequence[Credit]],
    environment: Environment,
    *,
    num_vines: int,
) -> None:
    """A rollout per line, with every segment's text, the values at its ends, its mean advantage, and some vines.

    `standard_errors` and `num_vines` are of the values of all states but the last, whose value is the reward. The
    first `num_tokens[0]` of the response's `token_ids` are the first segment's, and so on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as file:
        for group, group_credits in zip(groups, credits, strict=True):
            for rollout, credit in zip(group, group_credits, strict=True):
                file.write((json.dumps(describe(rollout, credit, environment, num_vines)) + "\n").encode())
    write_file(path, raw.getvalue())


def describe(rollout: Rollout, credit: Credit, environment: Environment, num_vines: int) -> dict[str, object]:
    bounds = credit.boundaries
    return {
        "problem": rollout.problem.id,
        "prompt": environment.framing.prompt(rollout.problem),
        "answer": rollout.problem.answer,
        "reward": rollout.reward,
        **({"named_rewards": dict(rollout.named_rewards)} if rollout.named_rewards else {}),
        "verdict": rollout.verdict,
        "finish_reason": rollout.completion.finish_reason,
        "segments": segment_texts(environment.tokenizer, rollout.token_ids, bounds),
        **({} if rollout.action_mask is None else {"turns": turns_in(rollout, bounds, environment)}),
        "num_tokens": [b - a for a, b in pairwise(bounds)],
        "token_ids": list(rollout.token_ids),
        "advantages": credit.segment_advantages,
        "values": boundary_values(rollout, credit),
        "standard_errors": credit.estimates and [known(estimate.standard_error) for estimate in credit.estimates],
        "num_vines": credit.estimates and [len(estimate.rewards) for estimate in credit.estimates],
        "vines": credit.estimates and [some_vines(estimate, num_vines) for estimate in credit.estimates],
    }


def turns_in(rollout: Rollout, boundaries: Sequence[int], environment: Environment) -> list[list[str]]:  # [S]
    """What the policy and the environment say by turns in each segment, the policy first."""
    ids, mask = rollout.token_ids, rollout.is_action
    runs = [runs_of(ids[a:b], mask[a:b]) for a, b in pairwise(boundaries)]
    return [[environment.tokenizer.decode(run, skip_special_tokens=True) for run in of_segment] for of_segment in runs]


def known(number: float) -> float | None:
    """JSON has no nan."""
    return number if math.isfinite(number) else None


def some_vines(estimate: ValueEstimate, n: int) -> list[dict[str, object]]:
    """The first n, which are as good as any n."""
    vines = zip(estimate.texts, estimate.rewards, strict=False)
    return [
        {"text": text, "reward": reward, **({"turns": list(turns)} if len(turns := turns_of(text)) > 1 else {})}
        for text, reward in islice(vines, n)
    ]


def boundary_values(rollout: Rollout, credit: Credit) -> list[float] | None:  # [S+1]
    """V(s_0) .. V(s_S), measured or by a critic, with V(s_S) = R; None for estimators that have no values."""
    if credit.values is not None:
        return list(credit.values)
    if credit.token_values is not None:
        pairs = zip(credit.boundaries[:-1], earned_before(rollout), strict=True)
        return [*(credit.token_values[b] + earned for b, earned in pairs), rollout.reward]
    return None


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


PER_SEGMENT = {
    "advantages": 0,
    "values": 1,
    "vines": 0,
    "standard_errors": 0,
    "num_vines": 0,
    "num_tokens": 0,
    "turns": 0,
}
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
    if not (isinstance(value, dict) and is_text(value.get("text")) and is_number(value.get("reward"))):
        return False
    return is_list_of(is_text, optional=True)(value.get("turns"))


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
    ("turns", is_list_of(is_list_of(is_text), optional=True), "a list of lists of texts"),
    ("vines", is_list_of(is_list_of(is_vine), optional=True), "a list of lists of vines"),
)
