"""Programs from files and drawn ones: what is graded, what is a vote, and what a bad file is told."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from vineppo.grading import Grader, GradingConfig
from vineppo.models.make import make_symbol_tokenizer
from vineppo.sandbox import Limits
from vineppo.tasks.code import Code, CodeConfig
from vineppo.tasks.programs.drawn import HEAD, LAST, OPERATIONS, DrawnConfig, Operation, run
from vineppo.tasks.programs.unit_tests import UnitTests
from vineppo.types import Problem, UserError

MBPP = {
    "text": "Write a function to find the elements that two tuples share.",
    "code": "import math\ndef shared(a, b):\n    return tuple(set(a) & set(b))",
    "test_setup_code": "limit = 0.1",
    "test_list": [
        "assert set(shared((3, 4, 5, 6), (5, 7, 4, 10))) == set((4, 5))",
        "assert shared((1,), (2,)) == ()",
        "assert abs(len(shared((1,), (1,))) - 1.0) < limit",
    ],
}
HUMANEVAL = {
    "prompt": 'def double(x: int) -> int:\n    return 2 * x\n\ndef has(xs, x):\n    """ Whether x is there.\n    """\n',
    "canonical_solution": "    for y in xs:\n        if x == y:\n            return True\n    return False\n",
    "entry_point": "has",
    "test": (
        "def check(candidate):\n    assert True, 'always'\n    for n in range(2):\n        assert candidate([n], n)\n"
        "    assert not candidate([], 1)\n    assert candidate([double(1)], 2) == True\n"
    ),
}
APPS = {
    "question": "Add two numbers.",
    "solutions": json.dumps(["print(sum(map(int, input().split())))"]),
    "input_output": json.dumps({"inputs": ["1 2\n", "3 4"], "outputs": ["3\n", "7"]}),
}
APPS_FUNCTION = {
    "question": "Add two numbers.",
    "starter_code": "class Solution:\n    def add(self, a, b):",
    "solutions": json.dumps(["broken (", "class Solution:\n    def add(self, a, b):\n        return a + b"]),
    "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], 7]}),
}
FORMATS = {"mbpp": MBPP, "humaneval": HUMANEVAL, "apps": APPS}


def make_task(tmp_path, form: str, rows: list[dict[str, Any]], **options: Any) -> Code:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Code(CodeConfig.model_validate({"path": str(tmp_path), "format": form, "num_validation": 0} | options))


@pytest.fixture(scope="module")
def drawn() -> Code:
    return Code(CodeConfig(drawn=DrawnConfig(num_test=6, num_validation=3)))


@pytest.mark.parametrize(("form", "row"), [*FORMATS.items(), ("apps", APPS_FUNCTION)])
def test_gold_solutions_of_every_format_pass(tmp_path, form, row):
    task = make_task(tmp_path, form, [row])
    (problem,) = task.split("test")
    assert task.grade(problem, problem.solution).reward == 1
    assert task.grade(problem, f"So:\n```python\n{problem.solution}\n```\nDone.").reward == 1
    assert task.grade(problem, "").verdict == task.grade(problem, "It is (so).").verdict == "unparseable"
    assert task.grade(problem, "pass").reward < 1


def test_a_reward_is_the_share_of_the_tests(tmp_path):
    (problem,) = (task := make_task(tmp_path, "mbpp", [MBPP])).split("test")
    grade = task.grade(problem, "def shared(a, b): return ()")
    assert (grade.reward, grade.verdict) == (1 / 3, "wrong")
    (problem,) = (task := make_task(tmp_path, "humaneval", [HUMANEVAL])).split("test")
    grade = task.grade(problem, "    return True\n")
    assert (grade.reward, grade.verdict) == (3 / 4, "wrong")
    (problem,) = (task := make_task(tmp_path, "apps", [APPS])).split("test")
    assert task.grade(problem, "print(3)").reward == 1 / 2


def test_prompts_show_what_the_recipe_says(tmp_path):
    (problem,) = make_task(tmp_path, "mbpp", [MBPP]).split("test")
    assert problem.prompt == f"{MBPP['text']}\n{MBPP['test_list'][0]}\n"
    (problem,) = make_task(tmp_path, "mbpp", [MBPP], num_shown=0, prompt_template="# {prompt}\n").split("test")
    assert problem.prompt == f"# {MBPP['text']}\n"
    (problem,) = make_task(tmp_path, "humaneval", [HUMANEVAL], prompt_template="{prompt}").split("test")
    assert problem.prompt == HUMANEVAL["prompt"]
    assert problem.solution == HUMANEVAL["canonical_solution"]
    (problem,) = make_task(tmp_path, "apps", [APPS_FUNCTION]).split("test")
    assert problem.prompt == f"Add two numbers.\n{APPS_FUNCTION['starter_code']}\n"


def test_no_more_tests_than_the_recipe_says(tmp_path):
    (problem,) = (task := make_task(tmp_path, "apps", [APPS], max_tests=1)).split("test")
    assert task.grade(problem, "print(3)").reward == 1


@pytest.mark.parametrize(
    ("form", "row", "complaint"),
    [
        ("mbpp", MBPP | {"text": None}, "test.jsonl:1 .neither text nor prompt"),
        ("mbpp", MBPP | {"test_list": "assert 1"}, "test_list is no list of texts"),
        ("mbpp", MBPP | {"test_list": ["assert other(1)"]}, "no test uses a function of the solution"),
        ("mbpp", MBPP | {"test_list": ["assert ("]}, "the tests are no Python"),
        ("mbpp", MBPP | {"code": "def ("}, "code is no Python"),
        ("humaneval", HUMANEVAL | {"prompt": "def ("}, "the tests are no Python"),
        ("humaneval", HUMANEVAL | {"entry_point": 3}, "'entry_point' is not a text"),
        ("apps", APPS | {"input_output": "{"}, "input_output is no JSON"),
        ("apps", APPS | {"input_output": ""}, "input_output is no JSON"),
        ("apps", APPS | {"input_output": '{"inputs": [1], "outputs": []}'}, "no inputs with as many outputs"),
        ("apps", APPS | {"input_output": "[1]"}, "no inputs with as many outputs"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_a_line(tmp_path, form, row, complaint):
    with pytest.raises(UserError, match=complaint):
        make_task(tmp_path, form, [row]).split("test")


def test_a_path_needs_a_format():
    with pytest.raises(ValidationError, match="format is required with a path: mbpp, humaneval, apps"):
        CodeConfig(path="somewhere")


def test_a_vote_is_for_a_program_however_it_is_written(drawn):
    problem = drawn.split("test")[0]
    for response in (problem.solution, "def f(x): return x", "x", "def f(x): return missing", "    return 1\n"):
        assert drawn.grade(problem, response).verdict in ("correct", "wrong")
        found = drawn.answer(response)
        assert found is not None
        assert drawn.grade(replace(problem, answer=found), response).verdict == "correct"
        assert drawn.grade(replace(problem, answer=found), f"# so\n{response}").verdict == "correct"
        assert drawn.grade(replace(problem, answer=found), "def g(): pass").verdict == "wrong"


def test_drawn_programs_do_what_their_words_say(drawn):
    """Python runs the statement, `run` the operation."""
    for name, (statement, _) in OPERATIONS.items():
        for number in (2, 3, 9):
            space: dict[str, Any] = {}
            exec(f"{HEAD}{Operation(name, number).statement}{LAST}", space)
            for x in range(-20, 21):
                assert space["f"](x) == run([Operation(name, number)], x)
            assert Operation(name, number).statement == f"    {statement.format(number)}\n"
    for problem in [*drawn.split("test"), *drawn.split("validation")]:
        assert drawn.grade(problem, problem.solution).reward == 1
        assert problem.solution.count("\n") == problem.prompt.count(",") + 3


@pytest.mark.parametrize("shown", ["words", "examples", "both"])
def test_drawn_problems_show_what_they_should_and_are_made_of_symbols(shown):
    task = Code(CodeConfig(drawn=DrawnConfig(shown=shown, num_test=20, num_examples=3)))
    tokenizer = make_symbol_tokenizer(task.symbols)
    for problem in [*task.split("test"), *task.sample(100, seed=0)]:
        text = problem.prompt + problem.solution
        assert tokenizer.decode(tokenizer.encode(text)) == text
        tests = UnitTests.read(problem.answer)
        assert tests is not None
        assert len({call[1][0] for call in tests.calls}) == 9
        examples = [f"f({given[0]})={value}" for _, given, value in tests.calls][:3]
        assert all((example in problem.prompt.split("\n")) == (shown != "words") for example in examples)
        assert (problem.prompt[0] == "f" and not problem.prompt.startswith("from ")) == (shown == "examples")


def test_the_demonstrator_slips_as_often_as_told():
    """A slip may draw the operation that it should have been."""
    num_slips = num_statements = 0
    task = Code(CodeConfig(drawn=DrawnConfig(slip_share=0.3)))
    for problem in task.sample(400, seed=0):
        words = [word.rpartition(" ") for word in problem.prompt.strip().split(", ")]
        right = [Operation(name, int(number)).statement for name, _, number in words]
        written = problem.solution.splitlines(keepends=True)[1:-1]
        num_slips += sum(a != b for a, b in zip(right, written, strict=True))
        num_statements += len(right)
    share = 0.3 * (1 - 1 / 72)
    assert abs(num_slips / num_statements - share) < 4 * (share * (1 - share) / num_statements) ** 0.5


@pytest.mark.parametrize(
    "knobs",
    [{"num_operations": (0, 2)}, {"num_operations": (3, 2)}, {"operations": ("plus", "root")}, {"operations": ()}],
)
def test_knobs_that_cannot_be_are_refused(knobs):
    with pytest.raises(ValidationError, match="must be"):
        DrawnConfig(**knobs)


def test_workers_grade_as_this_process_does_and_outlive_what_they_grade():
    """Endless programs and killed ones are wrong, and no failure of the grader's."""
    limits = Limits(cpu_s=1, timeout_s=2.0, memory_mb=128)
    task = Code(CodeConfig(limits=limits, drawn=DrawnConfig(num_test=3)))
    problem: Problem = task.split("test")[0]
    responses = [
        problem.solution, "def f(x): return x", "def f(x):\n    while True: pass", "import os\nos._exit(0)", "(", "",
        "import time\ntime.sleep(100)", "def f(x): return 'x' * (1 << 40)", "import ctypes\nctypes.string_at(0)",
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(task)).sandbox == task.sandbox
    with Grader(task, GradingConfig(memory_mb=256)) as grader:
        grades = grader.grade([(problem, response) for response in responses])
    assert grades == [task.grade(problem, response) for response in responses]
    assert [grade.verdict for grade in grades[2:6]] == ["wrong", "wrong", "unparseable", "unparseable"]
    assert set(grader.verdicts) == {"correct", "wrong", "unparseable"}


def test_samples_are_drawn_by_their_seed(drawn):
    rng = random.Random(0)
    seeds = [rng.randrange(2**63) for _ in range(5)]
    assert [drawn.sample(4, seed=seed) for seed in seeds] == [drawn.sample(4, seed=seed) for seed in seeds]
    held_out = {problem.prompt for split in ("test", "validation") for problem in drawn.split(split)}
    assert not held_out & {problem.prompt for seed in seeds for problem in drawn.sample(300, seed=seed)}
