"""Whatever an answer does to its grader, the others are graded right, and every verdict is counted."""

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from tasks.hostile_task import HostileTask

from vineppo.tasks.grading import AHEAD, MIN_FAILURES, Grader, GradingConfig
from vineppo.types import UserError

TASK = HostileTask()
PROBLEMS = TASK.sample(50, seed=0)
GOOD = [(problem, problem.answer) for problem in PROBLEMS]
LENIENT = GradingConfig(timeout_s=3.0, memory_mb=256, max_failure_share=1.0)


def children(parent: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listing.splitlines()]


def wait_until_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_hostile_answers_harm_only_themselves():
    hostile = {
        "sleep": "timeout", "spin": "timeout", "exit": "crashed", "raise": "crashed", "quit": "crashed",
        "memory": "crashed", "nonsense": "crashed", "partial": "correct",
    }  # fmt: skip
    pairs = [*GOOD[:25], *((PROBLEMS[0], response) for response in hostile), *GOOD[25:]]
    with Grader(TASK, LENIENT) as grader:
        grades = grader.grade(pairs)
        workers = [worker._process.pid for worker in grader._workers]
        assert [grade.verdict for grade in grades[25:33]] == list(hostile.values())
        assert all(grade.reward == 1 for grade in [*grades[:25], *grades[33:]])
        assert grades[32].reward == 0.25
        assert grader.verdicts == {"correct": 51, "timeout": 2, "crashed": 5}
        assert len(workers) == 2
    assert wait_until_gone(workers)


def test_the_same_text_and_problem_is_graded_once():
    task = HostileTask(isolate=False)
    grader = Grader(task, GradingConfig())
    pairs = [GOOD[0], GOOD[0], (PROBLEMS[1], "wrong")]
    assert grader.grade(pairs) == grader.grade(pairs)
    assert (task.num_graded, grader.num_cached) == (2, 4)
    assert grader.verdicts == {"correct": 4, "wrong": 2}


def test_a_mistake_in_a_task_that_is_graded_here_is_a_crash_too():
    grader = Grader(HostileTask(isolate=False), GradingConfig())
    assert [grade.verdict for grade in grader.grade([GOOD[0], (PROBLEMS[0], "raise")])] == ["correct", "crashed"]


def test_too_many_failures_stop_the_run_at_once():
    pairs = [(problem, "raise") for problem in PROBLEMS]
    with Grader(TASK, GradingConfig(max_failure_share=0.1)) as grader:
        with pytest.raises(UserError, match=r"of \d+ answers 0 timed out and 10 crashed.*hostile/"):
            grader.grade(pairs)
        assert grader._graded.total() == MIN_FAILURES


def test_few_failures_do_not_stop_the_run():
    pairs = [*((problem, "raise") for problem in PROBLEMS[:9]), *GOOD]
    with Grader(TASK, GradingConfig(max_failure_share=0.0)) as grader:
        assert grader.grade(pairs)[9].verdict == "correct"


def test_an_interrupted_call_leaves_nothing_behind_for_the_next(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with Grader(TASK, LENIENT) as grader:
        grader.grade(GOOD[:2])
        with monkeypatch.context() as patch:
            patch.setattr("vineppo.tasks.grading.wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                grader.grade([(PROBLEMS[0], "sleep"), (PROBLEMS[1], "wrong")])
        assert [grade.verdict for grade in grader.grade(GOOD[2:6])] == ["correct"] * 4


def test_a_worker_that_died_idle_is_replaced_without_blame():
    with Grader(TASK, LENIENT) as grader:
        grader.grade(GOOD[:2])
        for worker in grader._workers:
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.wait()
        assert [grade.verdict for grade in grader.grade(GOOD[2:6])] == ["correct"] * 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel to end orphans")
def test_workers_do_not_outlive_a_killed_parent_even_while_spinning():
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tasks.hostile_task import HostileTask\n"
        "from vineppo.tasks.grading import AHEAD, Grader, GradingConfig\n"
        "task = HostileTask(); grader = Grader(task, GradingConfig())\n"
        "problems = task.sample(2, seed=0); grader.grade([(p, p.answer) for p in problems])\n"
        "print('busy', flush=True); grader.grade([(problems[0], 'spin'), (problems[1], 'sleep')])\n"
    )
    tests = Path(__file__).parent.parent
    arguments = [sys.executable, "-c", script, str(tests), str(tests.parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "busy\n"
        time.sleep(0.3)
        workers = children(parent.pid)
        parent.kill()
    assert len(workers) == 2
    assert wait_until_gone(workers)


def test_workers_do_not_import_torch():
    code = "import sys, vineppo.tasks.grading_worker, vineppo.tasks; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_answers_are_graded_while_others_are_still_to_come():
    with Grader(TASK, GradingConfig()) as grader, grader.ahead() as ahead:
        for i in range(AHEAD):
            ahead.add(i, GOOD[i % len(GOOD)])
        deadline = time.monotonic() + 60
        while grader.verdicts.total() < AHEAD:
            assert time.monotonic() < deadline, "nothing was graded before grades() asked for it"
            time.sleep(0.01)
        ahead.add(99, (PROBLEMS[1], "wrong"))
        grades = ahead.grades()
    assert [grades[i].verdict for i in range(AHEAD)] == ["correct"] * AHEAD
    assert grades[99].verdict == "wrong"
    assert len(grades) == AHEAD + 1


def test_grading_ahead_counts_and_remembers_like_grading_at_once():
    pairs = [(PROBLEMS[i % 5], text) for i in range(50) for text in ("raise", "0", "1")]
    with Grader(TASK, GradingConfig(max_failure_share=1.0)) as once:
        expected = once.grade(pairs)
    with Grader(TASK, GradingConfig(max_failure_share=1.0)) as grader, grader.ahead() as ahead:
        for i, pair in enumerate(pairs):
            ahead.add(i, pair)
        assert ahead.grades() == dict(enumerate(expected))
        assert (grader.verdicts, grader.num_cached) == (once.verdicts, once.num_cached)


def test_a_broken_grader_stops_what_is_still_being_sampled():
    def sample_on(ahead):
        deadline = time.monotonic() + 60
        for i in count():
            assert time.monotonic() < deadline, "add never told"
            ahead.add(i, (PROBLEMS[i % 50], "raise"))
            time.sleep(0.001)

    config = GradingConfig(max_failure_share=0.1)
    with Grader(TASK, config) as grader, grader.ahead() as ahead, pytest.raises(UserError, match="grading fails"):
        sample_on(ahead)


def test_workers_outlive_a_call():
    with Grader(TASK, GradingConfig()) as grader:
        seen = []
        for _ in range(3):
            with grader.ahead() as ahead:
                for i in range(2 * AHEAD):
                    ahead.add(i, (PROBLEMS[i % 50], f"{len(seen)} {i}"))
                assert {grade.verdict for grade in ahead.grades().values()} == {"wrong"}
            time.sleep(0.2)
            seen.append([worker._process.pid for worker in grader._workers if worker.alive])
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) == 2


def test_stopping_waits_for_no_answer():
    def stop_while_it_grades(ahead, grader):
        for i in range(AHEAD):
            ahead.add(i, (PROBLEMS[i], "sleep"))
        while not any(worker.job is not None for worker in grader._workers):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with Grader(TASK, GradingConfig(timeout_s=30)) as grader:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), grader.ahead() as ahead:
            stop_while_it_grades(ahead, grader)
        assert time.monotonic() - start < 15
        assert grader.grade(GOOD[:3])[0].verdict == "correct"
