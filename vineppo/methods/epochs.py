"""Passes over data, an optimizer step after the other: minibatches, and the loop of methods whose data are fixed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vineppo.machine.limits import peak_memory_mb
from vineppo.protocols import Learner, Trainable
from vineppo.runs.checkpoint import is_due
from vineppo.seeding import derive_seed

if TYPE_CHECKING:
    from vineppo.learner.objective import LossFunction
    from vineppo.runs.session import Session

T = TypeVar("T")


def num_steps(num_rows: int, minibatch_size: int, num_epochs: int) -> int:
    return num_epochs * -(-num_rows // minibatch_size)


def split(rows: Sequence[T], minibatch_size: int, *, seed: int) -> list[list[T]]:
    """Minibatches in an order that `seed` decides; the last may be smaller, no row is dropped."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    return [order[i : i + minibatch_size] for i in range(0, len(order), minibatch_size)]


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


@dataclass(frozen=True)
class Passes:
    """Fixed data, and how they are gone over."""

    name: str  # of the method; its orders are drawn under it
    rows: Sequence[Any]
    minibatch_size: int
    num_epochs: int
    metrics: Mapping[str, float]  # once an epoch
    save_more: Callable[[Path], None] = field(default=lambda folder: None)

    @property
    def num_steps(self) -> int:
        return num_steps(len(self.rows), self.minibatch_size, self.num_epochs)


def run_passes(
    session: Session,
    learner: Learner,
    passes: Passes,
    *,
    loss: LossFunction,
) -> None:
    """With a policy, whose evaluations sample."""

    def evaluate(done: int) -> None:
        session.evaluate(session.setup.make_engine(), done, learner)

    run_steps(session, learner, passes, step=lambda minibatch: learner.step(minibatch, loss), evaluate=evaluate)


def run_steps(
    session: Session,
    learner: Trainable,
    passes: Passes,
    *,
    step: Callable[[list[Any]], dict[str, float]],
    evaluate: Callable[[int], None],
) -> None:
    """An iteration of the log is one optimizer step; evaluations and checkpoints are due at the ends of epochs."""
    recipe, log, last = session.recipe, session.log, passes.num_steps
    steps_per_epoch = last // passes.num_epochs
    save = partial(session.save, learner=learner, save_more=passes.save_more)
    seed = partial(derive_seed, recipe.seed, passes.name)
    order = minibatches(passes.rows, passes.minibatch_size, passes.num_epochs, seed=seed, first_step=session.completed)
    with session.saving_when_stopped(save):
        for iteration in session.iterations(last):
            done = iteration + 1
            epoch, rest = divmod(done, steps_per_epoch)
            if not session.take_up_owed(iteration):
                _, minibatch = next(order)
                with log.phase("update"):
                    log.add(step(minibatch))
                if rest == 0:
                    log.add({**passes.metrics, **learner.memory()})
                    if session.must_save(epoch, passes.num_epochs):
                        save(done, pending=log.pending())
            if rest == 0 and is_due(recipe.evaluation.every, epoch, passes.num_epochs):
                evaluate(done)
            log.write(done, {"memory/peak_mb": peak_memory_mb()})
            if done < last:
                session.shutdown.check()
