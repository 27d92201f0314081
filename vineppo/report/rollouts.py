"""Rollouts for the credit inspector: as many as the page can hold, and the credit that siblings' rewards would give."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, TypeVar

BUDGET = 2_500_000  # bytes of compressed rollouts in a page, over all its runs
MAX_ITERATIONS = 50
GRPO_STD_EPS = 1e-4  # the default of credit/grpo.py

T = TypeVar("T")


def read_rollouts(folder: Path, budget: int) -> dict[str, Any]:
    """Whole groups, evenly over iterations, of about `budget` bytes; files that a kill tore are named."""
    files = {int(path.name[10:16]): path for path in sorted(folder.glob("iteration-??????.jsonl.gz"))}
    chosen = evenly(list(files), MAX_ITERATIONS)
    size = sum(files[iteration].stat().st_size for iteration in chosen)
    share = min(1.0, budget / max(1, size))
    shown: list[dict[str, Any]] = []
    unreadable = []
    for iteration in chosen:
        try:
            groups = read_groups(files[iteration])
        except (OSError, EOFError, zlib.error, ValueError):
            unreadable.append(files[iteration].name)
            continue
        for group in evenly(groups, max(1, int(share * len(groups)))):
            shown += [{"iteration": iteration, **rollout} for rollout in with_sibling_credit(group)]
    return {"shown": shown, "iterations": list(files), "unreadable": unreadable}


def read_groups(path: Path) -> list[list[dict[str, Any]]]:
    """Siblings share a problem; a problem comes up once in an iteration."""
    groups: dict[str, list[dict[str, Any]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            rollout = json.loads(line)
            groups.setdefault(rollout["problem"], []).append(rounded(rollout))
    return list(groups.values())


def rounded(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Four digits are more than the page shows, and a third of the size."""
    numbers = {key: rollout[key] and [round(x, 4) for x in rollout[key]] for key in ("advantages", "values")}
    return {**rollout, **numbers, "vines": rollout.get("vines")}


def with_sibling_credit(group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rewards = [rollout["reward"] for rollout in group]
    if len(group) < 2:
        return [{**rollout, "grpo": None, "rloo": None} for rollout in group]
    credit = zip(group, grpo(rewards), rloo(rewards), strict=True)
    return [{**rollout, "grpo": round(a, 4), "rloo": round(b, 4)} for rollout, a, b in credit]


def grpo(rewards: Sequence[float]) -> list[float]:  # [G]
    """As credit/grpo.py, which stands on torch and so cannot be asked."""
    mean, scale = fmean(rewards), pstdev(rewards) + GRPO_STD_EPS
    return [(reward - mean) / scale if max(rewards) > min(rewards) else 0.0 for reward in rewards]


def rloo(rewards: Sequence[float]) -> list[float]:  # [G]
    """As credit/rloo.py."""
    return [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]


def evenly(items: Sequence[T], n: int) -> list[T]:
    """n of them (or all), spread evenly, the first and the last included."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, n - 1))] for i in range(n)]
