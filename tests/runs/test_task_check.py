"""`vineppo check-task`, and the same look at an own task before its run begins: every broken promise is named."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tiny import METHODS, SFT, START

from vineppo.cli import main
from vineppo.grading import Grader, GradingConfig
from vineppo.methods import kind_of, load_recipe
from vineppo.runs.recipe import make_part, make_recipe
from vineppo.runs.task_check import TaskCheck
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from vineppo.types import Grade, UserError

RECIPE = METHODS["grpo"] | {
    "name": "grpo",
    "model": START,
    "sampling": {"prompts_per_iteration": 4, "group_size": 4, "max_new_tokens": 18},
}
BROKEN = """
from vineppo.tasks.arithmetic import Arithmetic

class Broken(Arithmetic):
    def grade(self, problem, response):
        return super().grade(problem, response + nonsense)
"""


class Draws(Arithmetic):
    def sample(self, n, *, seed):
        return super().sample(n, seed=random.randrange(10**6))


class Repeats(Arithmetic):
    def sample(self, n, *, seed):
        return super().sample(1, seed=seed) * n


class Texts(Arithmetic):
    def sample(self, n, *, seed):
        return [problem.prompt for problem in super().sample(n, seed=seed)]


class NumberForAnswer(Arithmetic):
    def split(self, name):
        return [replace(problem, answer=int(problem.answer)) for problem in super().split(name)]


class Backwards(Arithmetic):
    def segment(self, response):
        return super().segment(response)[::-1]


class LooksAhead(Arithmetic):
    def segment(self, response):
        return [cut for cut in super().segment(response) if response[cut:].strip()]


class Fails(Arithmetic):
    def segment(self, response):
        return [len(response) // 0]


class WrongGold(Arithmetic):
    def grade(self, problem, response):
        return super().grade(replace(problem, answer="x"), response)


class AllRight(Arithmetic):
    def grade(self, problem, response):
        return Grade(float(bool(response)), "correct")


class Crashes(Arithmetic):
    def grade(self, problem, response):
        return response.index("no such thing")


class Tosses(Arithmetic):
    def grade(self, problem, response):
        return Grade(1 + random.random(), "correct") if response else Grade(0.0, "wrong")


class WholeLine(Arithmetic):
    def answer(self, response):
        return response.splitlines()[-1]


class NumberAsAnswer(Arithmetic):
    def answer(self, response):
        return 5


WRONG = [
    (Draws, "sample: other problems at the second call with the same seed"),
    (Repeats, "sample: 4 distinct problems asked for"),
    (Texts, "sample: must give a list of Problem, got list"),
    (NumberForAnswer, r"split: problem arithmetic/test/\w+: answer = \d"),
    (Backwards, r"segment: must give increasing positions in \(0, \d+\]"),
    (LooksAhead, r"segment: '.*' is cut at \[.*\] alone, and at \[.*\] where '.*' follows"),
    (Fails, r"segment: .*test_task_check.py:\d+: ZeroDivisionError"),
    (WrongGold, r"grade: problem arithmetic/test/\w+: its own solution is (wrong|unparseable), reward 0"),
    (AllRight, r"grade: problem arithmetic/test/\w+: an empty response is correct"),
    (Crashes, r"grade: problem .*: crashed on .*ValueError: substring not found"),
    (Tosses, r"grade: problem .*: two grades of"),
    (WholeLine, r"answer: '\d' of .* is no gold answer that it is right for|answer: '#### \d' of"),
    (NumberAsAnswer, "answer: must give a text or None, got int 5"),
]


def look(task: Any, *, isolate: bool = False, **options: bool) -> list[str]:
    task.isolate = isolate
    with Grader(task, GradingConfig(num_workers=1)) as grader:
        return list(TaskCheck(make_recipe(RECIPE, kind=kind_of(RECIPE), source="test"), task, grader).run(**options))


@pytest.mark.parametrize(("kind", "message"), WRONG, ids=lambda x: getattr(x, "__name__", ""))
def test_a_broken_promise_names_class_and_method(kind, message):
    with pytest.raises(UserError, match=rf"^task {kind.__name__}\.{message}") as raised:
        look(kind(ArithmeticConfig(num_test=6)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("variant", ["fatal", "repair", "forks", "distractors"])
def test_a_good_task_is_said_to_be_good(variant, isolate):
    found = look(Arithmetic(ArithmeticConfig(variant=variant, num_test=6)), isolate=isolate)
    assert [line.partition(":")[0] for line in found] == ["sample", "split", "segment", "segment", "grade", "answer"]
    assert "the worked solution is right in 4 of 4, an empty response in none" in found[4]


def test_without_worked_solutions_it_says_what_it_could_not_see():
    class Unsolved(Arithmetic):
        def split(self, name):
            return [replace(problem, solution="") for problem in super().split(name)]

    assert "no problem has a worked solution" in look(Unsolved(ArithmeticConfig(num_test=6)))[4]


def test_looking_at_a_task_counts_nothing():
    task = Arithmetic(ArithmeticConfig(num_test=6))
    with Grader(task, GradingConfig()) as grader:
        list(TaskCheck(make_recipe(RECIPE, kind=kind_of(RECIPE), source="test"), task, grader).run())
        assert not grader.verdicts
        assert not grader.num_cached


def test_the_command_shows_prompts_as_the_model_will_see_them(tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(SFT))
    assert main(["check-task", str(path), "task.variant=repair"]) == 0
    printed = capsys.readouterr().out
    task = make_part("task", load_recipe(path, ["task.variant=repair"]).task)
    for problem in task.sample(3, seed=0):
        assert problem.prompt in printed
        assert f"the answer is {problem.answer!r}" in printed
    assert len(re.findall(r"\d+ tokens in \d+ segments: (?:correct|wrong), reward [01]", printed)) == 3


@pytest.mark.parametrize("command", ["check-task", "sft"])
def test_a_broken_task_ends_before_anything_is_sampled(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text(BROKEN)
    Path("recipe.toml").write_text(tomli_w.dumps(SFT | {"task": {"name": "broken.py:Broken"}}))
    assert main([command, "recipe.toml"]) == 2
    complaint = capsys.readouterr().err
    assert re.search(r"task Broken\.grade: problem .*: crashed on .*NameError.*nonsense", complaint)
    assert not list(Path().rglob("iteration-*"))
