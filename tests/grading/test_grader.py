"""Whatever an answer does to its grader, the others are graded right, and every verdict is counted."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from hostile_task import HostileTask

from vineppo.grading import Grader, GradingConfig
from vineppo.grading.ahead import AHEAD, GradingAhead
from vineppo.grading.finding import Finding
from vineppo.grading.grader import MIN_FAILURES
from vineppo.grading.pool import STARTS, Worker
from vineppo.machine.limits import available_memory_bytes
from vineppo.types import Grade, UserError

TASK = HostileTask()
PROBLEMS = TASK.sample(50, seed=0)
GOOD = [(problem, problem.answer) for problem in PROBLEMS]
LENIENT = GradingConfig(timeout_s=0.3, memory_mb=256, max_failure_share=1.0)


@pytest.fixture
def impatient(monkeypatch):
    """Less time on the clock for what waits instead of computing, so that the tests need not wait for it."""
    monkeypatch.setattr("vineppo.grading.pool.PATIENCE", 5)


def workers_of(grader: Grader) -> list:
    assert grader._pool is not None
    return grader._pool._workers


def verdicts(grader: Grader, *responses: str) -> list[str]:
    return [grade.verdict for grade in grader.grade([(PROBLEMS[0], response) for response in responses])]


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


@pytest.mark.parametrize("num_workers", [1, 3])
def test_hostile_answers_harm_only_themselves(impatient, num_workers):
    hostile = {
        "sleep": "timeout", "spin": "timeout", "exit": "crashed", "raise": "crashed", "quit": "crashed",
        "memory": "crashed", "nonsense": "crashed", "die": "crashed", "partial": "correct",
    }  # fmt: skip
    pairs = [*GOOD[:25], *((PROBLEMS[0], response) for response in hostile), *GOOD[25:]]
    with Grader(TASK, LENIENT.model_copy(update={"num_workers": num_workers})) as grader:
        grades = grader.grade(pairs)
        workers = [worker._process.pid for worker in workers_of(grader)]
        assert [grade.verdict for grade in grades[25:34]] == list(hostile.values())
        assert all(grade.reward == 1 for grade in [*grades[:25], *grades[34:]])
        assert grades[33].reward == 0.25
        assert grader.verdicts == {"correct": 51, "timeout": 2, "crashed": 6}
        assert 1 <= len(workers) <= num_workers
    assert wait_until_gone(workers)


@pytest.mark.parametrize("isolate", [False, True])
def test_any_reward_comes_through_and_one_per_segment(isolate):
    with Grader(HostileTask(isolate=isolate), LENIENT) as grader:
        grades = grader.grade([(PROBLEMS[0], text) for text in ("negative", "segments: a|b", "segments: ab")])
    assert grades == [Grade(-2.5, "wrong"), Grade(0.25, "wrong", (-0.5, 0.75)), Grade(0.0, "crashed")]


def test_a_worker_that_sends_anything_but_replies_is_replaced(monkeypatch):
    with Grader(TASK, LENIENT.model_copy(update={"num_workers": 1})) as grader:
        assert verdicts(grader, "wrong") == ["wrong"]
        worker, receive = workers_of(grader)[0], Worker._receive
        monkeypatch.setattr(Worker, "_receive", lambda self: b"\x80" if self is worker else receive(self))
        assert verdicts(grader, "0") == ["correct"]
        assert worker not in workers_of(grader)


def test_only_time_that_the_answer_computes_counts():
    with Grader(HostileTask(busy_start_s=0.5), LENIENT) as grader:
        assert verdicts(grader, "doze") == ["correct"]


def test_only_memory_that_the_answer_takes_counts():
    """Not the 300 MiB of `prepare`, not what answers before it have left, not the arenas that threads might have."""
    with Grader(TASK, LENIENT.model_copy(update={"num_workers": 1})) as grader:
        assert [grader.grade([(problem, "leak")])[0].verdict for problem in PROBLEMS[:6]] == ["correct"] * 6
        assert verdicts(grader, "threads") == ["correct"]


@pytest.mark.parametrize("what", ["killed", "stopped"])
def test_a_worker_that_is_killed_or_stopped_from_outside_costs_no_answer(tmp_path, impatient, what):
    with Grader(TASK, LENIENT) as grader:
        answers = [f"{what} once: {tmp_path / str(i)}" for i in range(3)]
        assert verdicts(grader, *answers, "wrong") == ["correct"] * 3 + ["wrong"]
        assert all((tmp_path / str(i)).exists() for i in range(3))


def test_signals_for_the_parent_do_not_end_its_workers():
    with Grader(TASK, LENIENT) as grader:
        assert verdicts(grader, "signals") == ["correct"]


def test_what_a_grader_prints_reaches_no_terminal(capfd):
    with Grader(TASK, LENIENT) as grader:
        assert verdicts(grader, "print") == ["correct"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ends", [("killed",), ("killed", "exit"), ("exit", "killed")])
def test_a_worker_that_dies_while_it_starts_is_started_again(tmp_path, ends):
    with Grader(HostileTask(bad_starts=ends, folder=tmp_path), LENIENT.model_copy(update={"num_workers": 1})) as grader:
        assert verdicts(grader, "wrong", "0") == ["wrong", "correct"]


@pytest.mark.parametrize(("end", "why"), [("killed", "signal 9"), ("exit", r"exit code 1: .*thing works")])
def test_a_worker_that_never_starts_says_why(tmp_path, end, why):
    task = HostileTask(bad_starts=(end,) * STARTS, folder=tmp_path)
    with (
        Grader(task, LENIENT.model_copy(update={"num_workers": 1})) as grader,
        pytest.raises(UserError, match=f"did not start, 3 times; the last time it .*{why}") as caught,
    ):
        verdicts(grader, "wrong")
    assert "\n" not in str(caught.value)


def test_a_task_that_workers_cannot_import_is_named(monkeypatch):
    monkeypatch.setattr(HostileTask, "__module__", "no_such_module")
    monkeypatch.setitem(sys.modules, "no_such_module", sys.modules["hostile_task"])
    with Grader(HostileTask(), LENIENT) as grader, pytest.raises(UserError, match="No module named 'no_such_module'"):
        verdicts(grader, "wrong")


def test_a_task_that_cannot_be_sent_to_workers_is_named():
    task = HostileTask()
    task.segment = lambda response: []
    with pytest.raises(UserError, match=r"HostileTask cannot be sent to the processes that grade it .*isolate = False"):
        Grader(task, LENIENT)


def test_the_worker_by_itself_says_what_it_is():
    command = [sys.executable, "-m", "vineppo.grading.worker"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("a process in which vineppo grades answers")
    assert ended.stderr.count("\n") == 1


def test_more_memory_than_there_is_is_refused_before_the_start():
    there_is = available_memory_bytes() >> 20
    with pytest.raises(UserError, match=rf"num_workers = 2 times grading.memory_mb = {there_is}.*{there_is} MiB"):
        Grader(TASK, GradingConfig(num_workers=2, memory_mb=there_is))
    Grader(HostileTask(isolate=False), GradingConfig(num_workers=2, memory_mb=there_is))


def test_the_same_text_and_problem_is_graded_once():
    task = HostileTask(isolate=False)
    grader = Grader(task, GradingConfig())
    pairs = [GOOD[0], GOOD[0], (PROBLEMS[1], "wrong")]
    assert grader.grade(pairs) == grader.grade(pairs)
    assert (task.num_graded, grader.num_cached) == (2, 4)
    assert grader.verdicts == {"correct": 4, "wrong": 2}


@pytest.mark.parametrize("isolate", [False, True])
def test_named_rewards_come_through_and_are_remembered(isolate):
    with Grader(HostileTask(isolate=isolate), LENIENT) as grader:
        pair = (PROBLEMS[0], "named")
        first, again = grader.grade([pair]), grader.grade([pair])
    assert first == again == [Grade(0.25, "correct", named_rewards={"half": 0.125, "whole": 0.25})]


def test_a_mistake_in_a_task_that_is_graded_here_is_a_crash_too():
    grader = Grader(HostileTask(isolate=False), GradingConfig())
    assert [grade.verdict for grade in grader.grade([GOOD[0], (PROBLEMS[0], "raise")])] == ["correct", "crashed"]


def test_too_many_failures_stop_the_run_at_once():
    pairs = [(problem, "raise") for problem in PROBLEMS]
    with Grader(TASK, GradingConfig(max_failure_share=0.1)) as grader:
        with pytest.raises(UserError, match=r"of \d+ answers 0 timed out and 10 crashed.*hostile/.*ZeroDivisionError"):
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
            patch.setattr("vineppo.grading.pool.wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                grader.grade([(PROBLEMS[0], "sleep"), (PROBLEMS[1], "wrong")])
        assert [grade.verdict for grade in grader.grade(GOOD[2:6])] == ["correct"] * 4


def test_a_worker_that_died_idle_is_replaced_without_blame():
    with Grader(TASK, LENIENT) as grader:
        grader.grade(GOOD[:2])
        for worker in workers_of(grader):
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.wait()
        assert [grade.verdict for grade in grader.grade(GOOD[2:6])] == ["correct"] * 4


def test_killing_workers_at_random_changes_no_grade():
    rng = random.Random(0)
    pairs = [(problem, text) for problem in PROBLEMS[:20] for text in (problem.answer, "wrong", "partial")]
    found: dict[int, str] = {}
    with Grader(TASK, LENIENT) as grader:
        assert grader._pool is not None
        for number, (i, finding) in enumerate(grader._pool.ask(pairs, "grade")):
            assert isinstance(finding, Finding)
            found[i] = finding.grade.verdict
            running = [worker for worker in workers_of(grader) if worker.ready and worker.alive]
            if number % 15 == 0 and running:
                os.kill(rng.choice(running)._process.pid, signal.SIGKILL)
    assert [found[i] for i in range(len(pairs))] == ["correct", "wrong", "correct"] * 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel to end orphans")
def test_workers_do_not_outlive_a_killed_parent_even_while_spinning():
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from hostile_task import HostileTask\n"
        "from vineppo.grading import Grader, GradingConfig\n"
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
    code = "import sys, vineppo.grading.worker, vineppo.tasks; print('torch' in sys.modules)"
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
            seen.append([worker._process.pid for worker in workers_of(grader) if worker.alive])
        assert seen[0] == seen[1] == seen[2]
        assert len(seen[0]) == 2


def test_stopping_waits_for_no_answer():
    def stop_while_it_grades(ahead, grader):
        for i in range(AHEAD):
            ahead.add(i, (PROBLEMS[i], "sleep"))
        while not any(worker.job is not None for worker in workers_of(grader)):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with Grader(TASK, GradingConfig(timeout_s=30)) as grader:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), grader.ahead() as ahead:
            stop_while_it_grades(ahead, grader)
        assert time.monotonic() - start < 15
        assert grader.grade(GOOD[:3])[0].verdict == "correct"


@pytest.mark.parametrize("lag", [0, 3, 1000])
def test_what_is_done_is_looked_at_once(lag):
    """However far grading is behind, a job is asked at most twice whether it is done, and so n answers take O(n)."""
    jobs, num_asked = [], 0

    class Job:
        def __init__(self, pairs):
            self.pairs, self.number = pairs, len(jobs)

        def done(self):
            nonlocal num_asked
            num_asked += 1
            return self.number < len(jobs) - lag

        def result(self):
            return dict.fromkeys(self.pairs, "grade")

    class Thread(Executor):
        def submit(self, work, pairs):  # type: ignore[override]
            jobs.append(Job(pairs))
            return jobs[-1]

    ahead = GradingAhead(lambda pairs: [], lambda pairs: [], Thread(), Event())
    for i in range(100 * AHEAD):
        ahead.add(i, GOOD[0])
    assert ahead.grades() == dict.fromkeys(range(100 * AHEAD), "grade")
    assert len(jobs) == 100
    assert 99 <= num_asked <= 200


def test_the_newest_answers_are_remembered(monkeypatch):
    monkeypatch.setattr("vineppo.grading.grader.CACHE_SIZE", {"grade": 10})
    task = HostileTask(isolate=False)
    with Grader(task, GradingConfig()) as grader:
        for number in range(40):
            grader.grade([(PROBLEMS[0], f"{number}"), (PROBLEMS[1], f"{number}")])
        assert len(grader._caches["grade"]) == 10
        before = task.num_graded
        grader.grade([(PROBLEMS[i], f"{number}") for number in range(35, 40) for i in (0, 1)])
        assert task.num_graded == before
        grader.grade([(PROBLEMS[1], "34")])
        assert task.num_graded == before + 1
