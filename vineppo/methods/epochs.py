"""Passes over fixed data, one optimizer step after the other: what SFT, RestEM's refits and DPO+ have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vineppo.batch import split
from vineppo.learner.policy import PolicyLearner
from vineppo.runs.session import OnStart, Session, due, machine
from vineppo.runs.shutdown import Stopped

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


def run_epochs(
    session: Session,
    learner: PolicyLearner,
    rows: Sequence[T],
    minibatch_size: int,
    num_epochs: int,
    *,
    step: Callable[[Sequence[T]], dict[str, float]],
    seed: Callable[[int], int],
    once_an_epoch: dict[str, float],
    on_start: OnStart,
    save_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """An iteration of the log is one optimizer step; evaluations and checkpoints are due at the ends of epochs."""
    recipe, log = session.recipe, session.log
    total_steps = num_steps(len(rows), minibatch_size, num_epochs)
    steps_per_epoch = total_steps // num_epochs
    on_start(total_steps)

    def end_step(completed: int, epoch: int, rest: int) -> None:
        if rest == 0 and due(recipe.evaluation.every, epoch, num_epochs):
            session.evaluate(session.make_engine(), completed, learner)
        log.write(completed, machine())

    if session.take_up_line():
        end_step(session.completed, *divmod(session.completed, steps_per_epoch))
    order = minibatches(rows, minibatch_size, num_epochs, seed=seed, first_step=session.completed)
    for steps_before, minibatch in order:
        with log.phase("update"):
            log.add(step(minibatch))
        completed = steps_before + 1
        epoch, rest = divmod(completed, steps_per_epoch)
        if rest == 0:
            log.add(once_an_epoch | learner.memory())
            if session.must_save(epoch, num_epochs):
                session.save(completed, learner, pending=log.pending(), save_more=save_more)
        end_step(completed, epoch, rest)
        if completed < total_steps:
            try:
                session.shutdown.check()
            except Stopped:
                session.save(completed, learner, save_more=save_more)
                raise
