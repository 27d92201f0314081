"""Grading of some answers while others are still being written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from threading import Event
from types import TracebackType

from vineppo.grading.finding import Pair, Reply
from vineppo.types import Grade

AHEAD = 16
"""Answers that are handed over at once."""


class GradingAhead:
    """Takes answers one by one and grades them in `thread`, which for worker processes only waits.

    Tasks that are graded in this process would take the sampler's time: they have no `thread`, and their answers wait
    until all are there. What is done is looked at once, so n answers take O(n) steps. `stopping` ends a `grade` that
    is at work.
    """

    def __init__(
        self,
        grade: Callable[[Sequence[Pair]], list[Grade]],
        reply: Callable[[Sequence[Pair]], list[Reply | Grade]],
        thread: Executor | None,
        stopping: Event,
    ):
        self._grade, self._reply, self._thread, self._stopping = grade, reply, thread, stopping
        self._new: dict[int, Pair] = {}
        self._jobs: deque[Future[dict[int, Grade]]] = deque()  # in the order in which they will be done
        self._graded: dict[int, Grade] = {}
        self._asked: Future[list[Reply | Grade]] | None = None

    def add(self, index: int, pair: Pair) -> None:
        """Raises what grading has raised so far, so that a run with a broken grader stops at once."""
        self._new[index] = pair
        if self._thread and len(self._new) >= AHEAD:
            while self._jobs and self._jobs[0].done():
                self._graded |= self._jobs.popleft().result()
            self._jobs.append(self._thread.submit(self._grade_all, self._new))
            self._new = {}

    def settle(self, index: int, grade: Grade) -> None:
        """Of an answer that is graded already."""
        self._graded[index] = grade

    def replies(self, pairs: Sequence[Pair]) -> list[Reply | Grade]:
        """What the environment says to each; a failure's grade. Behind all that is being graded, and waits for it."""
        if self._thread is None:
            return self._reply(pairs)
        self._asked = self._thread.submit(self._reply, pairs)
        return self._asked.result()

    def grades(self) -> dict[int, Grade]:
        """Of all that were added, by index; waits for them."""
        while self._jobs:
            self._graded |= self._jobs.popleft().result()
        self._graded |= self._grade_all(self._new)
        self._new = {}
        return self._graded

    def _grade_all(self, pairs: dict[int, Pair]) -> dict[int, Grade]:
        return dict(zip(pairs, self._grade(list(pairs.values())), strict=True))

    def __enter__(self) -> GradingAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopping.set()
            jobs = [*self._jobs, *([self._asked] if self._asked else [])]
            for job in jobs:
                job.cancel()
            wait(jobs)
            self._stopping.clear()
