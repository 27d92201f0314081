"""Who is right: the tables of docs/tasks.md, row by row, and laws on what no table can list."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tasks.hostile_answers import GOLDS, SYMBOLIC, campaign

from vineppo.tasks.answers.numbers import grade_number, hash_answer
from vineppo.tasks.math import MATH
from vineppo.types import Problem, UserError

PAGE = (Path(__file__).parent.parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\|[^|`]*\| `(.+?)` \| `(.+?)` \| (right|wrong) \|", re.MULTILINE)


def rows(section: str) -> list[tuple[str, str, str]]:  # (gold, answer, verdict)
    text = PAGE.partition(f"\n### {section}\n")[2].partition("\n##")[0]
    found = [(gold.replace(r"\|", "|"), answer.replace(r"\|", "|"), said) for gold, answer, said in ROW.findall(text)]
    assert len(found) == text.count("\n|") - 2
    return found


@pytest.fixture(scope="session")
def math(tmp_path_factory):
    return MATH(MATH.Config(path=str(tmp_path_factory.mktemp("none"))))


@pytest.mark.parametrize(("gold", "answer", "verdict"), rows("`math`"))
def test_math_answers_are_judged_as_the_table_says(math, gold, answer, verdict):
    response = answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    assert (math.grade(Problem("p", "", gold), response).reward == 1) == (verdict == "right")


@pytest.mark.parametrize(("gold", "answer", "verdict"), rows("`gsm8k` and `arithmetic`"))
def test_numbers_are_judged_as_the_table_says(gold, answer, verdict):
    assert (grade_number(gold, hash_answer(answer)).reward == 1) == (verdict == "right")


def test_the_questions_own_formula_is_no_answer(math):
    problem = Problem("p", "Expand $(x+3)(x-3)$ and simplify \\[\\sqrt{242} = y.\\]", "x^2-9")
    assert math.grade(problem, "\\boxed{(x + 3)(x - 3)}").verdict == "wrong"
    assert math.grade(problem, "\\boxed{-9+x^2}").verdict == "correct"
    root = Problem("p", problem.prompt, "11\\sqrt2")
    assert math.grade(root, "\\boxed{\\sqrt{242}}").verdict == "wrong"
    assert math.grade(Problem("p", problem.prompt, "\\sqrt{242}"), "\\boxed{\\sqrt{242}}").verdict == "correct"


def make_problems(folder, *records):
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return MATH(MATH.Config(path=str(folder), num_validation=0)).split("train")


@pytest.mark.parametrize(
    ("problem", "solution", "right", "wrong"),
    [
        ("Solve. Enter all solutions.", "So $x = \\boxed{-2}$. Also, $\\boxed{1}$.", ["1,-2"], ["1", "-2"]),
        ("Enter all, separated by commas.", "\\boxed{70,110}", ["110,70", "70, 110"], ["70110"]),
        ("Solve.", "$x=\\boxed{3}$ or $\\boxed{\\frac25}$.", ["0.4, 3"], ["3", "0.4"]),
        ("Which point?", "\\boxed{(3,-5)}. $\\boxed{(0,0)}$ is also acceptable.", ["(3,-5)", "(0,0)"], ["(0,1)"]),
        ("What is $d$?", "$d=\\boxed{-3}$. Note: \\boxed{3} is also accepted.", ["-3"], ["3"]),
        ("What is $a+b$?", "It is \\boxed{\\frac a7}, so \\boxed{161}.", ["161"], ["\\frac a7"]),
        ("Simplify.", "\\boxed{x+11} or \\boxed{11+x}.", ["x+11"], ["x+12"]),
        ("Solve.", "\\boxed{7}, where \\boxed means the answer.", ["7"], ["means"]),
    ],
)
def test_which_boxes_of_a_solution_are_the_gold(tmp_path, math, problem, solution, right, wrong):
    (made,) = make_problems(tmp_path, {"problem": problem, "solution": solution})
    assert math.grade(made, solution).reward == 1
    assert all(math.grade(made, f"\\boxed{{{answer}}}").reward == 1 for answer in right)
    assert not any(math.grade(made, f"\\boxed{{{answer}}}").reward for answer in wrong)


def test_the_field_answer_wins_over_boxes(tmp_path, math):
    rows = [{"problem": "?", "solution": "\\boxed{1}", "answer": answer} for answer in ("-2, 1", 7, 0.5, 1e-7)]
    made = make_problems(tmp_path, *rows)
    assert [problem.answer for problem in made] == ["-2, 1", "7", "0.5", "0.0000001"]
    assert not any(math.grade(problem, "\\boxed{1}").reward for problem in made)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), True, "  ", "$$", ".", [1], "3}", "{3", "\\text{"])
def test_golds_that_can_never_be_earned_are_refused_by_file_and_line(tmp_path, answer):
    good = {"problem": "?", "solution": "\\boxed{1}"}
    with pytest.raises(UserError, match=r"1 gold answers cannot be parsed: .*train\.jsonl:2 "):
        make_problems(tmp_path, good, good | {"answer": answer})


def test_prepare_imports_all_that_grading_needs():
    """In a process of its own: what grades import after it, and what it prints."""
    golds = ["5", r"2\sqrt{3}", "x^2-9", r"\overline{CD}", r"\lim_{x \to 0} x", "(1,2)", r"\text{east}", "k=7", "1,2"]
    code = """
import sys
from vineppo.tasks.math import MATH
from vineppo.types import Problem
task = MATH(MATH.Config(path="none"))
task.prepare()
assert {"math_verify", "sympy", "mpmath"} <= set(sys.modules)
before = set(sys.modules)
for gold in sys.argv[1:]:
    for answer in sys.argv[1:]:
        task.grade(Problem("p", "", gold), f"\\\\boxed{{1 \\\\cdot {answer}}}")
        assert (task.grade(Problem("p", "", gold), f"\\\\boxed{{{answer}}}").reward == 1) == (gold == answer)
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code, *golds], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_hostile_answers_hang_nothing_run_nothing_and_are_never_right_for_two_numbers():
    results = campaign(int(os.environ.get("VINEPPO_HOSTILE_ANSWERS", "1500")))
    assert [(result["right_for_two"], result["ran"]) for result in results.values()] == [([], {}), ([], {})]
    assert not {"timeout", "crashed"} & set(results["math"]["verdicts"])
    assert results["math"]["verdicts"]["correct"] >= len(GOLDS) + len(SYMBOLIC)
