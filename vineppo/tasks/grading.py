"""Grading that neither hangs nor lies: worker processes under a time and a memory limit, and verdicts that are counted.

A verdict is correct, wrong, unparseable, timeout or crashed; only the first earns reward. A grader that keeps failing
stops the run, since a policy trained on silent zeros would be worthless.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from multiprocessing.connection import Connection, Pipe, wait
from threading import Event
from types import TracebackType

from pydantic import Field

from vineppo.config import Config
from vineppo.types import Grade, Problem, Task, UserError

Pair = tuple[Problem, str]
CACHE_SIZE = 200_000
STARTUP_S = 120.0
LOOK_S = 0.2
"""Between looks at whether grading goes on at all."""
AHEAD = 16
"""Answers that are handed over at once while others are still being written."""
MIN_FAILURES = 10
"""Timeouts and crashes before their share is believed: 3 of the first 20 answers happen by chance at a rate of 5 %."""


class GradingConfig(Config):
    num_workers: int = Field(default=2, ge=1)
    timeout_s: float = Field(default=10.0, gt=0)
    """Per answer; the worker is killed and replaced."""
    memory_mb: int = Field(default=2048, ge=64)
    """Per worker, on top of what it takes to start."""
    max_failure_share: float = Field(default=0.1, ge=0, le=1)
    """Timeouts and crashes as a share of all graded answers, above which the run stops."""


class Grader:
    """Grades batches of (problem, response). A task with `isolate` is graded in worker processes, others right here.

    `verdicts` counts every pair that was asked for; the same problem and text is graded once.
    """

    def __init__(self, task: Task, config: GradingConfig):
        self.config = config
        self.verdicts: Counter[str] = Counter()
        self.num_cached = 0
        self._task = task
        self._task_bytes = pickle.dumps(task) if task.isolate else b""
        self._cache: dict[bytes, Grade] = {}
        self._graded: Counter[str] = Counter()
        self._workers: list[Worker] = []
        # One for life: a worker dies with the thread that started it.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._stopping = Event()

    def grade(self, pairs: Sequence[Pair]) -> list[Grade]:
        keys = [fingerprint(pair) for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._cache}
        self.num_cached += len(pairs) - len(new)
        known = {key: self._cache[key] for key in keys if key in self._cache}
        grades = known | dict(zip(new, self._grade_new(list(new.values())), strict=True))
        self._remember({key: grades[key] for key in new})
        results = [grades[key] for key in keys]
        self.verdicts.update(grade.verdict for grade in results)
        return results

    def ahead(self) -> GradingAhead:
        return GradingAhead(self, in_parallel=self._task.isolate)

    def submit(self, pairs: dict[int, Pair]) -> Future[dict[int, Grade]]:
        return self._thread.submit(self.grade_all, pairs)

    def grade_all(self, pairs: dict[int, Pair]) -> dict[int, Grade]:
        return dict(zip(pairs, self.grade(list(pairs.values())), strict=True))

    def abandon(self, jobs: Sequence[Future[dict[int, Grade]]]) -> None:
        """Waits for no answer any more."""
        self._stopping.set()
        for job in jobs:
            job.cancel()
        wait_for(jobs)
        self._stopping.clear()

    def close(self) -> None:
        self._thread.shutdown()
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _grade_new(self, pairs: list[Pair]) -> list[Grade]:
        if self._task.isolate:
            return self._grade_in_workers(pairs)
        grades = []
        for pair in pairs:
            grades.append(grade_here(self._task, pair))
            self._count(pair, grades[-1])
        return grades

    def _grade_in_workers(self, pairs: list[Pair]) -> list[Grade]:
        while len(self._workers) < min(self.config.num_workers, len(pairs)):
            self._workers.append(Worker(self._task_bytes, self.config))
        try:
            return self._share_out(pairs)
        finally:  # an interrupted worker still holds an answer of this call, and must not hand it to the next
            for worker in [worker for worker in self._workers if worker.job is not None]:
                worker.kill()
                self._workers.remove(worker)

    def _share_out(self, pairs: list[Pair]) -> list[Grade]:
        grades: list[Grade | None] = [None] * len(pairs)
        queue = deque(range(len(pairs)))
        while queue or any(worker.job is not None for worker in self._workers):
            for i, worker in enumerate(self._workers):
                if worker.job is None and queue:
                    while not worker.start(queue[0], pairs[queue[0]]):  # it died between two answers
                        worker = self._workers[i] = self._replace(worker)
                    queue.popleft()
            busy = [worker for worker in self._workers if worker.job is not None]
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            wait([worker.connection for worker in busy], min(patience, LOOK_S))
            if self._stopping.is_set():
                raise InterruptedError("grading was abandoned")
            for worker in busy:
                grade = worker.poll()
                if grade is not None:
                    j = worker.take_job()
                    grades[j] = grade
                    self._count(pairs[j], grade)
                    if not worker.alive and queue:
                        self._workers[self._workers.index(worker)] = self._replace(worker)
        assert None not in grades
        return [grade for grade in grades if grade is not None]

    def _replace(self, worker: Worker) -> Worker:
        worker.kill()
        return Worker(self._task_bytes, self.config)

    def _count(self, pair: Pair, grade: Grade) -> None:
        """Stops the run at once when too many of the answers graded so far failed, rather than after a whole batch."""
        self._graded[grade.verdict] += 1
        num_graded, num_failed = self._graded.total(), self._graded["timeout"] + self._graded["crashed"]
        failed = grade.verdict in ("timeout", "crashed")
        if failed and num_failed >= MIN_FAILURES and num_failed > self.config.max_failure_share * num_graded:
            raise UserError(
                f"grading fails: of {num_graded} answers {self._graded['timeout']} timed out and "
                f"{self._graded['crashed']} crashed the grader, more than grading.max_failure_share = "
                f"{self.config.max_failure_share}; for example {pair[0].id}: {pair[1][-80:]!r}; "
                "raise grading.timeout_s or grading.memory_mb, or mend the task's grade"
            )

    def _remember(self, grades: dict[bytes, Grade]) -> None:
        self._cache |= grades
        for key in list(self._cache)[: max(0, len(self._cache) - CACHE_SIZE)]:
            del self._cache[key]


class GradingAhead:
    """Takes answers one by one, while others are still being written, and grades them in the meantime.

    In a thread, which for worker processes only waits. Tasks that are graded right here would take the sampler's time,
    so their answers wait until all are there.
    """

    def __init__(self, grader: Grader, *, in_parallel: bool):
        self._grader, self._in_parallel = grader, in_parallel
        self._new: dict[int, Pair] = {}
        self._jobs: list[Future[dict[int, Grade]]] = []

    def add(self, index: int, pair: Pair) -> None:
        """Raises what grading has raised so far, so that a run with a broken grader stops at once."""
        self._new[index] = pair
        if self._in_parallel and len(self._new) >= AHEAD:
            for job in self._jobs:
                if job.done():
                    job.result()
            self._jobs.append(self._grader.submit(self._new))
            self._new = {}

    def grades(self) -> dict[int, Grade]:
        """Of all that were added, by index."""
        graded = {index: grade for job in self._jobs for index, grade in job.result().items()}
        return graded | self._grader.grade_all(self._new)

    def __enter__(self) -> GradingAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._grader.abandon(self._jobs)


def fingerprint(pair: Pair) -> bytes:
    problem, response = pair
    return hashlib.blake2b(repr((problem.id, problem.answer, response)).encode(), digest_size=16).digest()


def grade_here(task: Task, pair: Pair) -> Grade:
    try:
        return task.grade(*pair)
    except Exception:  # the task's own mistake, counted like one in a worker process
        return Grade(0.0, "crashed")


class Worker:
    """A process that grades one answer at a time. Its start-up is not counted against the first answer."""

    def __init__(self, task_bytes: bytes, config: GradingConfig):
        self.config = config
        self.job: int | None = None
        self.deadline = 0.0
        self.connection: Connection
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vineppo.tasks.grading_worker", str(theirs.fileno()), str(config.memory_mb)],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        theirs.close()
        self.connection.send_bytes(task_bytes)
        if not self.connection.poll(STARTUP_S) or self._receive() != "ready":
            self.kill()
            raise UserError("the grading worker did not start; run `python -m vineppo.tasks.grading_worker` to see why")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, job: int, pair: Pair) -> bool:
        """Whether it took the job; a dead worker takes none."""
        try:
            self.connection.send(pair)
        except OSError:
            return False
        self.job, self.deadline = job, time.monotonic() + self.config.timeout_s
        return True

    def poll(self) -> Grade | None:
        """The grade of the job, or None while it is still at work."""
        if self.connection.poll():
            received = self._receive()
            if isinstance(received, Grade):
                return received
            self.kill()
            return Grade(0.0, "crashed")
        if time.monotonic() >= self.deadline:
            self.kill()
            return Grade(0.0, "timeout")
        return None

    def take_job(self) -> int:
        assert self.job is not None
        job, self.job = self.job, None
        return job

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def _receive(self) -> object:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None
