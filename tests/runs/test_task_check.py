"""`vineppo check-task`, and the same look at an own task before its run begins: every broken promise is named."""

from __future__ import annotations

import random
import re
import threading
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


class SameTwice(Arithmetic):
    def split(self, name):
        return super().split(name)[:1] * 3


class Empty(Arithmetic):
    def split(self, name):
        return []


class TrainsOnTheTest(Arithmetic):
    def sample(self, n, *, seed):
        return self.split("test")[:n]


class HalfACharacter(Arithmetic):
    def split(self, name):
        return [replace(problem, prompt="\ud800") for problem in super().split(name)]


class UnknownSymbol(Arithmetic):
    def sample(self, n, *, seed):
        return [replace(problem, prompt=f"{problem.prompt}?") for problem in super().sample(n, seed=seed)]


class Leaves(Arithmetic):
    def grade(self, problem, response):
        raise SystemExit("bye")


class Forgets(Arithmetic):
    def sample(self, n):  # type: ignore[override]
        return super().sample(n, seed=0)


class TextAsReward(Arithmetic):
    def grade(self, problem, response):
        return Grade("1.0", "correct")  # type: ignore[arg-type]


WRONG = [
    (SameTwice, "split: 1 distinct ids in the 3 problems of 'test'"),
    (Empty, "split: 0 distinct ids in the 0 problems"),
    (TrainsOnTheTest, r"split: problem arithmetic/test/\w+ is in 'test', and sample\(\) gives it for training"),
    (HalfACharacter, r"split: problem '.*': half a character or a NUL in its prompt"),
    (UnknownSymbol, r"symbols: problem arithmetic/train/\w+: none of them is '\?'"),
    (Leaves, r"grade: problem .*: crashed on .*test_task_check.py:\d+: SystemExit: bye"),
    (Forgets, r"sample: TypeError: Forgets.sample\(\) got an unexpected keyword argument 'seed'"),
    (TextAsReward, r"grade: .*test_task_check.py:\d+: ValueError: reward must be a number, got '1.0'"),
    (Draws, "sample: other problems at the second call with the same seed"),
    (Repeats, "sample: 4 problems with ids of their own asked for, got 1"),
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


OWN = """
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig

class OwnConfig(ArithmeticConfig):
    pass

class Own(Arithmetic):
    Config = OwnConfig
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("    def __init__(self, config):\n        config.nothing", r"own.py:11: AttributeError: .*'nothing'"),
        ("    def __init__(self):\n        pass", r"task.name = \S+own.py:Own: TypeError: Own.__init__\(\) takes 1"),
        ("    @property\n    def isolate(self):\n        return 1 / 0", r"own.py:12: ZeroDivisionError"),
        ("    isolate = 'yes'", r"task Own.isolate: must be True or False, got str 'yes'"),
        ("    symbols = property(lambda self: None, lambda *_: None)", "task Own.symbols: must be a list of texts"),
    ],
)
def test_what_is_wrong_before_any_method_is_called_is_one_line_too(tmp_path, monkeypatch, capsys, code, said):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(f"{OWN}\n{code}\n")
    Path("recipe.toml").write_text(tomli_w.dumps(SFT | {"task": {"name": "own.py:Own"}}))
    assert main(["check-task", "recipe.toml"]) == 2
    complaint = capsys.readouterr().err
    assert re.search(said, complaint), complaint
    assert complaint.count("\n") == 1


def test_a_wrong_default_and_a_validator_that_fails_are_named_by_their_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, (knob, said) in enumerate(
        [
            ("    lines: int = 'x'", "task.lines = 'x': must be a whole number"),
            (
                "    @field_validator('modulus')\n    def f(cls, value):\n        return value + ''",
                "own1.py:8: TypeError",
            ),
        ]
    ):
        code = "from pydantic import field_validator\n" + OWN.replace("    pass", knob)
        Path(f"own{number}.py").write_text(code)
        Path("recipe.toml").write_text(tomli_w.dumps(SFT | {"task": {"name": f"own{number}.py:Own"}}))
        assert main(["check-task", "recipe.toml", "task.modulus=5"]) == 2
        assert said in capsys.readouterr().err


def test_a_problem_that_cannot_be_sent_to_graders_is_named():
    class Locked(Arithmetic):
        def split(self, name):
            return [replace(problem, meta={"lock": threading.Lock()}) for problem in super().split(name)]

    task = Arithmetic(ArithmeticConfig(num_test=6))
    locked = Locked(ArithmeticConfig(num_test=6)).split("test")[0]
    task.isolate = True
    with (
        Grader(task, GradingConfig(num_workers=1)) as grader,
        pytest.raises(UserError, match=f"problem {locked.id} can"),
    ):
        grader.grade([(locked, "")])
