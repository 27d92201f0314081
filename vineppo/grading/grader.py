"""Grading that neither hangs nor lies: worker processes under a time and a memory limit, and verdicts that are counted.

A verdict is correct, wrong, unparseable, timeout or crashed. What fails to be graded, the last two, earns 0. A grader
that keeps failing stops the run, since a policy trained on silent zeros would be worthless.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from types import TracebackType

from pydantic import Field

from vineppo.config import Config
from vineppo.grading.ahead import GradingAhead
from vineppo.grading.judge import JudgeConfig
from vineppo.grading.pool import Pool
from vineppo.grading.reply import Pair, Reply, grade_with
from vineppo.machine.limits import available_memory_bytes
from vineppo.protocols import Task
from vineppo.types import Grade, UserError

CACHE_SIZE = 200_000
MIN_FAILURES = 10
"""Timeouts and crashes before their share is believed: 3 of the first 20 answers happen by chance at a rate of 5 %."""


class GradingConfig(Config):
    num_workers: int = Field(default=2, ge=1)
    timeout_s: float = Field(default=10.0, gt=0, le=86_400)
    """Of processor time, per answer; the worker is killed and replaced."""
    memory_mb: int = Field(default=2048, ge=64)
    """Per worker, on top of what it takes to start."""
    max_failure_share: float = Field(default=0.1, ge=0, le=1)
    """Timeouts and crashes as a share of all graded answers, above which the run stops."""
    reward_model: JudgeConfig | None = None
    """Has a say in the rewards that are trained on; by default they are the task's own."""


class Grader:
    """Grades batches of (problem, response). A task with `isolate` is graded in worker processes, others right here.

    `verdicts` counts every pair that was asked for; the same problem and text is graded once.
    """

    def __init__(self, task: Task, config: GradingConfig):
        self.config = config
        self.verdicts: Counter[str] = Counter()
        self.num_cached = 0
        self._task = task
        self._stopping = Event()
        self._pool = make_pool(task, config, self._stopping) if task.isolate else None
        self._cache: OrderedDict[bytes, Grade] = OrderedDict()
        self._graded: Counter[str] = Counter()
        # One for life: a worker dies with the thread that started it.
        self._thread = ThreadPoolExecutor(max_workers=1)

    def grade(self, pairs: Sequence[Pair]) -> list[Grade]:
        """In time and memory proportional to the pairs, whatever has been graded before."""
        keys = [fingerprint(pair) for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._cache}
        self.num_cached += len(pairs) - len(new)
        known = {key: self._cache[key] for key in keys if key in self._cache}
        grades = known | dict(zip(new, self._grade_new(list(new.values())), strict=True))
        self._remember({key: grades[key] for key in new})
        results = [grades[key] for key in keys]
        self.verdicts.update(grade.verdict for grade in results)
        return results

    def replies(self, pairs: Sequence[Pair]) -> list[Reply]:
        """Grades with why a grader crashed. Nothing is counted or remembered: it is the task that is looked at."""
        if self._pool is None:
            return [grade_with(self._task, *pair) for pair in pairs]
        with closing(self._pool.grade(list(pairs))) as graded:
            found = dict(graded)
        return [found[i] for i in range(len(pairs))]

    def ahead(self) -> GradingAhead:
        """For answers that come one by one. Left by an exception, it waits for none of them any more."""
        return GradingAhead(self.grade, self._thread if self._task.isolate else None, self._stopping)

    def close(self) -> None:
        self._thread.shutdown()
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _grade_new(self, pairs: list[Pair]) -> list[Grade]:
        if self._pool is None:
            return [self._count(pair, grade_with(self._task, *pair)) for pair in pairs]
        grades: dict[int, Grade] = {}
        with closing(self._pool.grade(pairs)) as graded:
            for i, reply in graded:
                grades[i] = self._count(pairs[i], reply)
        return [grades[i] for i in range(len(pairs))]

    def _count(self, pair: Pair, reply: Reply) -> Grade:
        """Stops the run at once when too many of the answers graded so far failed, rather than after a whole batch."""
        self._graded[reply.grade.verdict] += 1
        num_graded, num_failed = self._graded.total(), self._graded["timeout"] + self._graded["crashed"]
        failed = reply.grade.verdict in ("timeout", "crashed")
        if failed and num_failed >= MIN_FAILURES and num_failed > self.config.max_failure_share * num_graded:
            raise UserError(
                f"grading fails: of {num_graded} answers {self._graded['timeout']} timed out and "
                f"{self._graded['crashed']} crashed the grader, more than grading.max_failure_share = "
                f"{self.config.max_failure_share}; for example {pair[0].id}: {pair[1][-80:]!r}"
                f"{reply.why and f' ({reply.why!r})'}; "
                "raise grading.timeout_s or grading.memory_mb, or mend the task's grade"
            )
        return reply.grade

    def _remember(self, grades: dict[bytes, Grade]) -> None:
        self._cache |= grades
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)


def make_pool(task: Task, config: GradingConfig, stopping: Event) -> Pool:
    workers, memory_mb, available_mb = config.num_workers, config.memory_mb, available_memory_bytes() >> 20
    if workers * memory_mb > available_mb:
        raise UserError(
            f"grading.num_workers = {workers} times grading.memory_mb = {memory_mb} is more than the "
            f"{available_mb} MiB that this process may use; lower one of them"
        )
    return Pool(task, num_workers=workers, timeout_s=config.timeout_s, memory_mb=memory_mb, stopping=stopping)


def fingerprint(pair: Pair) -> bytes:
    problem, response = pair
    return hashlib.blake2b(repr((problem.id, problem.answer, response)).encode(), digest_size=16).digest()
