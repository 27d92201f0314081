"""Questions and answers of any file: fields by name, and ways to compare and to find an answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from vineppo.grading import Grader, GradingConfig
from vineppo.tasks.qa import GRADERS, QA, QAConfig
from vineppo.types import Problem, UserError

CASES = [
    ({}, "New York", "It is\n  New  York \n\n", "correct"),
    ({}, "New York", "New York\nor not", "wrong"),
    ({}, "New York", " \n\n", "unparseable"),
    ({}, "York", "york", "wrong"),
    ({"answer_in": "marker"}, "7", "#### 8\n#### 7\nso", "correct"),
    ({"answer_in": "marker"}, "7", "7", "unparseable"),
    ({"answer_in": "marker"}, "7", "#### \n7", "unparseable"),
    ({"answer_in": "marker", "marker": "Answer:"}, "B", "Answer: A\nAnswer: B", "correct"),
    ({"answer_in": "box"}, "x", r"so \boxed{x}.", "correct"),
    ({"answer_in": "box"}, "x", "so x", "unparseable"),
    ({"grader": "number"}, "1,018", "it costs\n$1018.00", "correct"),
    ({"grader": "number"}, "1/2", "0.5", "correct"),
    ({"grader": "number"}, "1/2", "half", "unparseable"),
    ({"grader": "choice"}, "(B)", "b", "correct"),
    ({"grader": "choice"}, "B", "B. because of that", "correct"),
    ({"grader": "choice"}, "B", "(C)", "wrong"),
    ({"grader": "choice"}, "B", "Because", "unparseable"),
    ({"grader": "math", "answer_in": "box"}, r"\frac{1}{2}", r"so \boxed{0.5}", "correct"),
    ({"grader": "math"}, r"x+1", "so\n$1+x$", "correct"),
    ({"grader": "math"}, r"\frac{1}{3}", "0.333", "wrong"),
    ({"grader": "math", "answer_in": "box"}, "2", "2", "unparseable"),
    ({"grader": "regex"}, r"(?i)(new )?york", "It is\nYork", "correct"),
    ({"grader": "regex"}, r"(?i)(new )?york", "New York, I think", "wrong"),
    ({"grader": "regex"}, r"\d+", r"\d+", "wrong"),
    ({"grader": "regex"}, r".*", "", "unparseable"),
]


def make_task(tmp_path, rows, **options) -> QA:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QA(QAConfig.model_validate({"path": str(tmp_path), "num_validation": 0} | options))


@pytest.mark.parametrize(("options", "gold", "response", "verdict"), CASES)
def test_verdicts(options, gold, response, verdict):
    task = QA(QAConfig.model_validate({"path": "none"} | options))
    problem = Problem("p", "q", gold)
    assert task.grade(problem, response).verdict == verdict
    found = task.answer(response)
    if verdict in ("correct", "wrong"):  # what majority voting rests on
        assert found is not None
        assert task.grade(replace(problem, answer=found), response).verdict == "correct"


def test_the_recipe_says_which_fields_and_how_they_are_written(tmp_path):
    rows = [{"q": f" {n}+1? ", "a": f"{n + 1}", "work": f"{n}+1={n + 1}"} for n in range(5)]
    task = make_task(
        tmp_path, rows, prompt="q", answer="a", solution="work", prompt_template="Q: {prompt}\nA:",
        solution_template=" {solution}", grader="number",
    )  # fmt: skip
    assert task.split("test")[1] == Problem("qa/test/1", "Q: 1+1?\nA:", "2", " 1+1=2")
    assert not make_task(tmp_path, rows, prompt="q", answer="a").split("test")[1].solution


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, r"train.jsonl:1: the field 'question' is missing; the fields here: 'q', 'a'"),
        ({"prompt": "q", "answer": "b"}, "the field 'b' is missing"),
        ({"prompt": "q", "answer": "a", "solution": "s"}, "the field 's' is missing"),
        ({"prompt": "q", "answer": "a", "grader": "number"}, r"train.jsonl:1 \(no number: 'many'\)"),
        ({"prompt": "q", "answer": "a", "grader": "choice"}, r"train.jsonl:1 \(no choice: 'many'\)"),
    ],
)
def test_what_a_file_lacks_is_said_in_a_line(tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        make_task(tmp_path, [{"q": "How many?", "a": "many"}], **options).split("train")


def test_a_template_without_its_field_is_refused():
    with pytest.raises(ValidationError, match=r"must contain \{prompt\}"):
        QAConfig(path="none", prompt_template="{question}")


@pytest.mark.parametrize("gold", ["[0-9", "(?P<a>x)(?P<a>y)", "a{1,9999999999999}", "*"])
def test_a_pattern_that_is_none_is_said_with_its_place(tmp_path, gold):
    with pytest.raises(UserError, match=r"train.jsonl:1 \(no regex: "):
        make_task(tmp_path, [{"question": "q", "answer": gold}], grader="regex").split("train")


def test_what_may_hang_is_graded_in_processes(tmp_path):
    assert {grader: QA(QAConfig(path="none", grader=grader)).isolate for grader in GRADERS} == {
        "exact": False, "number": False, "choice": False, "math": True, "regex": True,
    }  # fmt: skip
    problem = Problem("p", "q", r"(a+)+b")
    with Grader(QA(QAConfig(path="none", grader="regex")), GradingConfig(num_workers=1, timeout_s=0.5)) as grader:
        grades = grader.grade([(problem, "aab"), (problem, "a" * 60), (problem, "aa")])
    assert [grade.verdict for grade in grades] == ["correct", "timeout", "wrong"]
