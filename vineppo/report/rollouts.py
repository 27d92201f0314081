"""Rollouts for the credit inspector: as many as the page can hold, and the credit by comparison within a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vineppo.credit.advantages import group_advantages, leave_one_out
from vineppo.rollout_files import rollout_files, rollouts_of
from vineppo.types import UserError

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


def read_groups(path: Path) -> list[list[dict[str, Any]]]:
    """Siblings share a problem; a problem comes up once in an iteration."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for rollout in rollouts_of(path, f"rollouts/{path.name}"):
        groups.setdefault(rollout["problem"], []).append(rounded(rollout))
    return list(groups.values())


def rounded(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Four digits are more than the page shows, and a third of the size. Files of earlier runs lack the last two, and
    tokens are not shown."""
    numbers = {
        key: rollout.get(key) and [x if x is None else round(x, 4) for x in rollout[key]]
        for key in ("advantages", "values", "standard_errors")
    }
    shown = {key: value for key, value in rollout.items() if key not in ("token_ids", "num_vines")}
    return {**shown, **numbers, "vines": rollout.get("vines")}


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
