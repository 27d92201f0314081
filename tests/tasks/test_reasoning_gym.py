"""Generators of the package reasoning-gym keep a task's promises, and the page says which of them do."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vineppo.grading import Grader, GradingConfig
from vineppo.tasks.answers.evaluated import as_formula, is_plain
from vineppo.tasks.reasoning_gym import (
    FORMULAS,
    LITERALS,
    PACKAGE,
    ReasoningGym,
    ReasoningGymConfig,
    gold_of,
    seeded,
)
from vineppo.types import Grade, Problem, UserError

ROOT = Path(__file__).parents[2]
FEW = {"num_test": 6, "num_validation": 4}
NAMES = ["chain_sum", "leg_counting", "countdown", "list_functions", "binary_matrix", "tower_of_hanoi"]


def make(dataset: str, **knobs: Any) -> ReasoningGym:
    pytest.importorskip(PACKAGE)
    return ReasoningGym(ReasoningGymConfig.model_validate({"dataset": dataset} | FEW | knobs))


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_keeps_the_promises_of_a_task(name):
    task = make(name)
    test, validation, train = task.split("test"), task.split("validation"), task.sample(8, seed=3)
    assert (len(test), len(validation), len(train)) == (6, 4, 8)
    everything = [*test, *validation, *train]
    assert len({problem.id for problem in everything}) == len({problem.prompt for problem in everything}) == 18
    again = make(name)
    random.random()  # what others have drawn before changes nothing
    assert (again.sample(8, seed=3), again.split("test")) == (train, test)
    assert again.sample(8, seed=4) != train
    for problem in everything:
        assert task.grade(problem, problem.solution) == Grade(1.0, "correct")
        assert task.grade(problem, "") == task.grade(problem, "<answer> </answer>") == Grade(0.0, "unparseable")
        wrong = f"so\n<answer>{problem.answer}</answer> no\n<answer>something else</answer>"
        assert task.grade(problem, wrong).verdict == ("unparseable" if name in FORMULAS else "wrong")
        found = task.answer(wrong)
        assert found is not None
        assert task.grade(replace(problem, answer=found), wrong) == Grade(1.0, "correct")
        assert task.grade(replace(problem, answer=found), problem.solution) == Grade(0.0, "wrong")


def test_scores_may_be_partial_and_are_given_in_processes():
    task = make("chain_sum")
    problem = task.split("test")[0]
    longer = f"<answer>{problem.answer} apples</answer>"
    share = len(problem.answer) / len(f"{problem.answer} apples")  # the package's own rule for texts
    with Grader(task, GradingConfig(num_workers=1)) as grader:
        grades = grader.grade([(problem, longer), (problem, problem.solution)])
    assert grades == [Grade(share, "wrong"), Grade(1.0, "correct")]


def test_options_and_the_place_of_the_answer_are_the_recipes():
    task = make("chain_sum", options={"min_terms": 2, "max_terms": 2, "max_digits": 1}, answer_in="last_line")
    problem = task.sample(1, seed=0)[0]
    assert problem.prompt.endswith("\n\nGive the final answer alone on the last line.\n")
    assert problem.solution == problem.answer
    assert abs(int(problem.answer)) < 20
    assert task.grade(problem, f"<answer>0</answer>\n{problem.answer}\n\n").verdict == "correct"
    assert make("chain_sum", prompt_template="Q: {question}\nA:").split("test")[0].prompt.startswith("Q: State")


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"dataset": "chain_sums"}, r"no such generator \(did you mean 'chain_sum'\?\)"),
        ({"dataset": "chain_sum", "options": {"terms": 2}}, r"task.options.terms: chain_sum takes .*min_terms"),
        ({"dataset": "chain_sum", "options": {"min_terms": 0}}, "AssertionError: .*; change task.options or task.size"),
        ({"dataset": "composite"}, "AssertionError: Must specify at least one dataset"),
        ({"dataset": "binary_matrix", "answer_in": "last_line"}, 'several lines; set task.answer_in = "tags"'),
        ({"dataset": "chain_sum", "size": 9}, "chain_sum: 4 distinct validation problems asked for, there are 3"),
    ],
)
def test_what_a_generator_cannot_do_is_said_in_a_line(knobs, complaint):
    with pytest.raises(UserError, match=complaint) as raised:
        make(**knobs).split("test")
    assert "\n" not in str(raised.value)


def test_training_problems_end_where_the_generators_do():
    task = make("chain_sum", size=20)
    assert len(task.sample(10, seed=0)) == 10
    with pytest.raises(UserError, match="11 distinct train problems asked for, there are 10"):
        task.sample(11, seed=0)
    with pytest.raises(UserError, match="unlimited training problems"):
        task.split("train")


def test_seeds_are_the_tasks_own():
    with pytest.raises(ValueError, match="seed and size are the task's own"):
        ReasoningGymConfig(dataset="chain_sum", options={"seed": 1, "size": 2})


def test_draws_are_the_same_and_nobody_elses_are_changed():
    random.seed(5)
    wanted = [random.random(), random.random()]
    random.seed(5)
    found, inside = [random.random()], []
    for _ in range(2):
        with seeded(7):
            inside.append(random.random())
    assert [*found, random.random()] == wanted
    assert inside[0] == inside[1]


def test_where_no_gold_is_known_only_the_score_says_what_is_right():
    task = make("propositional_logic")
    problem = task.split("test")[0]
    assert (problem.answer, problem.solution, gold_of(problem.meta["entry"])) == ("", "", "")
    assert task.grade(problem, "<answer>nonsense</answer>").verdict == "wrong"


def test_a_score_that_breaks_at_an_answer_could_not_read_it():
    class Broken:
        def score_answer(self, answer, entry):
            return float(answer)

    task = ReasoningGym.__new__(ReasoningGym)
    task.config, task.__dict__["_generator"] = ReasoningGymConfig(dataset="any"), Broken()
    problem = Problem("p", "", "1", meta={"entry": {"answer": "1"}})
    assert task.grade(problem, "<answer>one</answer>") == Grade(0.0, "unparseable")
    assert task.grade(problem, "<answer>0.5</answer>") == Grade(0.5, "wrong")


def test_the_page_has_the_figures_of_the_file():
    from generators import PAGE, RESULT, rows

    result = json.loads(RESULT.read_text())
    assert len(result["generators"]) > 100
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert table == rows(result)


ATTACKS = (
    "open({path!r}, 'w')",
    "__import__('os').system('touch {path}')",
    "lambdify([], 'open({path!r}, \"w\")')()",
    "S.__class__.__init__.__globals__.__getitem__('__builtins__').__getitem__('open')({path!r}, 'w')",
    "[open({path!r}, 'w') for _ in '1']",
    "exec({spelled})",
    "sin('open({path!r}, \"w\")')",
    "[*map(open, [{path!r}], 'w')]",
    "f'{{open({path!r}, \"w\")}}'",
    "(lambda: open({path!r}, 'w'))()",
    "print(file=open({path!r}, 'w'))",
)


@pytest.mark.parametrize("dataset", sorted(FORMULAS | LITERALS))
def test_no_answer_is_run(dataset, tmp_path):
    """By the package's own scores each of these generators would run one of them at least."""
    path = tmp_path / "run"
    spelled = "+".join(f"chr({ord(c)})" for c in f"open({str(path)!r}, 'w')")
    answers = [attack.format(path=str(path), spelled=spelled) for attack in ATTACKS]
    task = make(dataset)
    problem = task.split("test")[0]
    for answer in answers:
        assert task.grade(problem, f"<answer>{answer}</answer>").reward == 0.0
    assert not path.exists()
    for answer in answers:
        with contextlib.suppress(Exception):
            task._generator.score_answer(answer, problem.meta["entry"])
    assert path.exists()


def test_an_integral_is_no_answer_but_where_the_package_knows_no_other():
    task = make("intermediate_integration", num_test=60)
    golds = [problem for problem in task.split("test") if "Integral" in problem.answer]
    assert golds
    for problem in golds:
        assert task.grade(problem, problem.solution).verdict == "correct"
        assert task.grade(problem, f"<answer>{problem.answer} </answer>").verdict == "correct"
        assert task.grade(problem, f"<answer>0 + {problem.answer}</answer>").verdict == "unparseable"


def test_answers_that_are_evaluated_may_be_formulas_or_lists():
    assert as_formula(" 2*x**3/3 - sin(2*x) + C\n") == "2 * x ** 3 / 3 - sin(2 * x) + C"
    assert as_formula("(75 - 3) * 0x2") == "(75 - 3) * 2"
    for text in ("x y", "", "5!", "abc", "x.real", "'x'", "f(x)", "log(x, evaluate=0)", "x if x else x", "[1]"):
        assert as_formula(text) is None
    assert all(map(is_plain, ("ABCD", "['A', 'B']", "[[1, -2], [3]]", "_ Q\nQ _", "1 2 3", "")))
    assert not any(map(is_plain, ("[exit()]", "a.b", "{1: exit()}", "[x for x in y]", "f'{x}'")))


def test_the_last_answer_counts_and_a_long_response_is_read_once():
    task = make("chain_sum")
    assert task.answer("<answer>1</answer> or <answer>2</answer> so") == "2"
    assert task.answer("<answer>1</answer> or <answer>2") == "1"
    assert task.answer("<answer>1</answer> 2</answer>") == "1"
    for text in ("</answer>1<answer>", "<answer>1", "1</answer>", "<answer></answer>"):
        assert task.answer(text) is None
    assert task.answer("<answer>" * 200_000) is None
