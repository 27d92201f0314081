"""Worker processes that grade, each one answer at a time: started, watched, and replaced when they die.

A limit counts what the answer itself costs, never what else the machine does: the time is the worker's own processor
time. What may not have been the answer's fault (a signal from outside, memory that earlier answers had left behind,
a worker that stands still) gets a second go in a fresh worker, and only then a verdict.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from threading import Event

from vineppo.grading.finding import READY, TIME_IS_UP, Finding, Pair, Reply, Wanted, crash, read_finding
from vineppo.parts import codes_in
from vineppo.protocols import Task
from vineppo.types import Grade, UserError

STARTUP_S = 120.0
STARTS = 3
"""Times that a worker is started before the run gives up."""
PATIENCE = 10
"""Times the limit of processor time that an answer may take on the clock: for what waits instead of computing."""
MAX_FINDING = 1 << 26
"""Bytes."""
LOOK_S = 0.2
"""Between looks at whether grading goes on at all."""
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
"""One thread in each worker: there are several of them, and the engine's threads besides."""


@dataclass(frozen=True)
class Job:
    index: int
    pair: Pair
    wanted: Wanted
    again: bool = False


class Pool:
    """Once `stopping` is set, whoever waits for grades gets an InterruptedError instead."""

    def __init__(self, task: Task, *, num_workers: int, timeout_s: float, memory_mb: int, stopping: Event):
        self._num_workers, self._timeout_s, self._memory_mb = num_workers, timeout_s, memory_mb
        self._stopping = stopping
        self._task_bytes = pickle_task(task)
        self._workers: list[Worker] = []

    def ask(self, pairs: Sequence[Pair], wanted: Wanted) -> Generator[tuple[int, Finding | Reply], None, None]:
        """The index of a pair and what came of it, in the order in which they are done. To be closed if left early."""
        jobs = deque(Job(i, pair, wanted) for i, pair in enumerate(pairs))
        num_open = len(jobs)
        try:
            while num_open:
                while len(self._workers) < min(self._num_workers, num_open):
                    self._workers.append(self._start())
                self._hand_out(jobs)
                waiting = [worker for worker in self._workers if not worker.idle]
                patience = min((worker.deadline for worker in waiting), default=0.0) - time.monotonic()
                wait([worker.connection for worker in waiting], min(max(0.0, patience), LOOK_S))
                if self._stopping.is_set():
                    raise InterruptedError("grading was abandoned")
                for done in filter(None, map(self._look_at, waiting)):
                    num_open -= 1
                    yield done
        finally:  # an interrupted worker still holds an answer of this call, and must not hand it to the next
            for worker in [worker for worker in self._workers if worker.job is not None]:
                self._drop(worker)

    def close(self) -> None:
        for worker in list(self._workers):
            self._drop(worker)

    def _hand_out(self, jobs: deque[Job]) -> None:
        for worker in [worker for worker in self._workers if worker.idle]:
            if not jobs:
                return
            if worker.take(jobs[0]):
                jobs.popleft()
            else:  # it died between two answers
                self._drop(worker)

    def _look_at(self, worker: Worker) -> tuple[int, Finding | Reply] | None:
        """What a worker has done. One that is gone is dropped, or replaced by one that begins with its job."""
        finding, job = worker.look(), worker.job
        if not worker.ready and not worker.alive:
            how = worker.end()
            self._drop(worker)
            if worker.starts == STARTS:
                raise UserError(f"the grading worker did not start, {STARTS} times; the last time it {how}")
            self._workers.append(self._start(job, worker.starts + 1))
        elif finding is not None and job is not None:
            worker.job = None
            in_doubt = isinstance(finding, Finding) and finding.in_doubt
            if in_doubt or not worker.alive:
                self._drop(worker)
            if not in_doubt or job.again:
                return job.index, finding
            self._workers.append(self._start(replace(job, again=True)))
        return None

    def _start(self, job: Job | None = None, starts: int = 1) -> Worker:
        return Worker(self._task_bytes, self._timeout_s, self._memory_mb, job, starts)

    def _drop(self, worker: Worker) -> None:
        worker.kill()
        self._workers.remove(worker)


class Worker:
    """A process, and the answer it is at. Its start is not counted against the first answer, which may wait for it."""

    def __init__(self, task_bytes: bytes, timeout_s: float, memory_mb: int, job: Job | None, starts: int):
        self.job, self.starts, self.ready = job, starts, False
        self.deadline = time.monotonic() + STARTUP_S
        self._patience = PATIENCE * timeout_s
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        ours, theirs = socket.socketpair()
        # A process that is stopped, or dies now, must not keep us from handing out the rest.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(STARTUP_S), 0))
        limits = [str(timeout_s), str(memory_mb)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vineppo.grading.worker", str(theirs.fileno()), *limits],
            pass_fds=[theirs.fileno()],
            env=os.environ | ALONE | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=self._words,
            stderr=self._words,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self._send(task_bytes)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    def take(self, job: Job) -> bool:
        """Whether it took the job; a dead worker takes none."""
        if not self._send(pickle_job(job)):
            return False
        self.job, self.deadline = job, time.monotonic() + self._patience
        return True

    def look(self) -> Finding | Reply | None:
        """What came of the job, or None while there is none yet. Afterwards a process that broke off is not alive."""
        received = None
        if self.connection.poll():
            received = self._receive()
        elif self.alive and time.monotonic() < self.deadline:
            return None
        if received is not None and self.ready:
            try:
                return read_finding(received)
            except ValueError:
                return crash("the worker sent no finding", in_doubt=True)
        if received == READY:
            self.ready = True
            if self.job is None or self.take(self.job):
                return None
        expired = time.monotonic() >= self.deadline
        code = self._reap()
        if code == -TIME_IS_UP:
            return Finding(Grade(0.0, "timeout"))
        if expired:
            return Finding(Grade(0.0, "timeout"), in_doubt=True)
        return crash(f"the worker {self.end()}", in_doubt=code < 0)

    def end(self) -> str:
        """How the process ended, and the last it said before it was ready."""
        code = self._process.returncode
        if code >= 0:
            how = f"ended with exit code {code}"
        elif time.monotonic() >= self.deadline:
            how = f"was not ready within {STARTUP_S:.0f} s"
        else:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        self._words.seek(0)
        said = self._words.read()[-1000:].decode(errors="replace").split("\n")
        return how + next((f": {line.strip()}" for line in reversed(said) if line.strip()), "")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._words.close()

    def _reap(self) -> int:
        """The exit code of a process that is ending or hangs."""
        try:
            return self._process.wait(max(0.0, min(1.0, self.deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _send(self, message: bytes) -> bool:
        try:
            self.connection.send_bytes(message)
        except OSError:
            return False
        return True

    def _receive(self) -> bytes | None:
        try:
            return self.connection.recv_bytes(MAX_FINDING)
        except (EOFError, OSError):
            return None


def pickle_task(task: Task) -> bytes:
    """With the code of the files that it needs, where they are somebody's own."""
    try:
        task_bytes = pickle.dumps(task)
        return pickle.dumps((codes_in(task_bytes), task_bytes))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(
            f"{type(task).__name__} cannot be sent to the processes that grade it ({error}); keep what cannot be "
            "pickled out of the task, or set isolate = False"
        ) from None


def pickle_job(job: Job) -> bytes:
    try:
        return pickle.dumps((*job.pair, job.wanted))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(
            f"problem {job.pair[0].id} cannot be sent to the processes that grade it ({error}); keep what cannot be "
            "pickled out of its meta, or set isolate = False"
        ) from None
