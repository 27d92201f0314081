"""Questions and answers of any file: fields by name, and three ways to compare and to find an answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from vineppo.tasks.qa import QA, QAConfig
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
