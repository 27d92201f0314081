"""Grading that neither hangs nor lies: worker processes under a time and a memory limit, and verdicts that are counted.

A verdict is correct, wrong, unparseable, timeout or crashed. What fails to be graded, the last two, earns 0. A grader
that keeps failing stops the run, since a policy trained on silent zeros would be worthless.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from types import TracebackType

from pydantic import Field

from vineppo.config import Config
from vineppo.grading.ahead import GradingAhead
from vineppo.grading.finding import Finding, Pair, Reply, Wanted, answer
from vineppo.grading.judge import JudgeConfig
from vineppo.grading.pool import Pool
from vineppo.machine.limits import available_memory_bytes
from vineppo.protocols import Task
from vineppo.transcript import turns_of
from vineppo.types import Grade, UserError

CACHE_SIZE = {"grade": 200_000, "reply": 20_000}
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
        self._caches: dict[Wanted, OrderedDict[bytes, Grade | Reply]] = {"grade": OrderedDict(), "reply": OrderedDict()}
        self._graded: Counter[str] = Counter()
        # One for life: a worker dies with the thread that started it.
        self._thread = ThreadPoolExecutor(max_workers=1)

    def grade(self, pairs: Sequence[Pair]) -> list[Grade]:
        """In time and memory proportional to the pairs, whatever has been graded before."""
        grades = [found for found in self._answers(pairs, "grade") if isinstance(found, Grade)]
        self.verdicts.update(grade.verdict for grade in grades)
        return grades

    def reply(self, pairs: Sequence[Pair]) -> list[Reply | Grade]:
        """What the environment says to each; where it failed to, the response's grade."""
        replies = self._answers(pairs, "reply")
        self.verdicts.update(found.verdict for found in replies if isinstance(found, Grade))
        return replies

    def findings(self, pairs: Sequence[Pair]) -> list[Finding]:
        """Grades with why a grader crashed. Nothing is counted or remembered: it is the task that is looked at."""
        return [found for found in self.look(pairs, "grade") if isinstance(found, Finding)]

    def look(self, pairs: Sequence[Pair], wanted: Wanted) -> list[Finding | Reply]:
        found = dict(self._ask(pairs, wanted))
        return [found[i] for i in range(len(pairs))]

    def ahead(self) -> GradingAhead:
        """For answers that come one by one. Left by an exception, it waits for none of them any more."""
        return GradingAhead(self.grade, self.reply, self._thread if self._task.isolate else None, self._stopping)

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

    def _answers(self, pairs: Sequence[Pair], wanted: Wanted) -> list[Grade | Reply]:
        cache, keys = self._caches[wanted], [fingerprint(pair) for pair in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in cache}
        self.num_cached += len(pairs) - len(new)
        answers = {key: cache[key] for key in keys if key in cache}
        asked, waiting = list(new), list(new.values())
        with closing(self._ask(waiting, wanted)) as found:
            for i, finding in found:
                answers[asked[i]] = self._count(waiting[i], finding)
        cache |= {key: answers[key] for key in new}
        while len(cache) > CACHE_SIZE[wanted]:
            cache.popitem(last=False)
        return [answers[key] for key in keys]

    def _ask(self, pairs: Sequence[Pair], wanted: Wanted) -> Generator[tuple[int, Finding | Reply], None, None]:
        if self._pool is not None:
            return self._pool.ask(pairs, wanted)
        return ((i, answer(self._task, *pair, wanted)) for i, pair in enumerate(pairs))

    def _count(self, pair: Pair, finding: Finding | Reply) -> Grade | Reply:
        """Stops the run at once when too many of the answers graded so far failed, rather than after a whole batch."""
        if isinstance(finding, Reply):
            self._graded["reply"] += 1
            return finding
        self._graded[finding.grade.verdict] += 1
        num_graded, num_failed = self._graded.total(), self._graded["timeout"] + self._graded["crashed"]
        failed = finding.grade.verdict in ("timeout", "crashed")
        if failed and num_failed >= MIN_FAILURES and num_failed > self.config.max_failure_share * num_graded:
            raise UserError(
                f"grading fails: of {num_graded} answers {self._graded['timeout']} timed out and "
                f"{self._graded['crashed']} crashed the grader, more than grading.max_failure_share = "
                f"{self.config.max_failure_share}; for example {pair[0].id}: {pair[1][-80:]!r}"
                f"{finding.why and f' ({finding.why!r})'}; "
                "raise grading.timeout_s or grading.memory_mb, or mend the task's grade"
            )
        return finding.grade


def make_pool(task: Task, config: GradingConfig, stopping: Event) -> Pool:
    workers, memory_mb, available_mb = config.num_workers, config.memory_mb, available_memory_bytes() >> 20
    if workers * memory_mb > available_mb:
        raise UserError(
            f"grading.num_workers = {workers} times grading.memory_mb = {memory_mb} is more than the "
            f"{available_mb} MiB that this process may use; lower one of them"
        )
    return Pool(task, num_workers=workers, timeout_s=config.timeout_s, memory_mb=memory_mb, stopping=stopping)


def fingerprint(pair: Pair) -> bytes:
    """The same text in other turns is another response."""
    problem, response = pair
    key = problem.id, problem.answer, response if turns_of(response) == (response,) else turns_of(response)
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
