"""Passes over fixed data, one optimizer step after the other: what SFT, RestEM's refits and DPO+ have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vineppo.batch import split

T = TypeVar("T")


def num_steps(num_rows: int, minibatch_size: int, num_epochs: int) -> int:
    return num_epochs * -(-num_rows // minibatch_size)


def minibatches(
    rows: Sequence[T], minibatch_size: int, num_epochs: int, *, seed: Callable[[int], int], first_step: int = 0
) -> Iterator[tuple[int, list[T]]]:
    """(steps taken before it, minibatch); `seed(epoch)` decides the epoch's order, and no row is dropped."""
    steps_per_epoch = num_steps(len(rows), minibatch_size, 1)
    order: list[list[T]] = []
    for step in range(first_step, steps_per_epoch * num_epochs):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or not order:
            order = split(rows, minibatch_size, seed=seed(epoch))
        yield step, order[position]
