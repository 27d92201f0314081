"""A tool in turns: what it replies to a program, that it replies so again, and what counts as the answer."""

from __future__ import annotations

import json
import pickle

import pytest

from vineppo.models.make import make_symbol_tokenizer
from vineppo.protocols import TakesTurns
from vineppo.segments import looks_ahead
from vineppo.tasks import python_tool
from vineppo.tasks.python_tool import ChainConfig, PythonTool, PythonToolConfig
from vineppo.transcript import Transcript
from vineppo.types import Problem, UserError

PROBLEM = Problem("p", "2, times 3\n", "6")


def test_it_takes_turns(task):
    assert isinstance(task, TakesTurns)


@pytest.fixture(scope="module")
def task() -> PythonTool:
    return PythonTool(PythonToolConfig(max_output_chars=40, drawn=ChainConfig(num_test=12, num_validation=4)))


def reply_to(task: PythonTool, program: str) -> str:
    said = task.reply(PROBLEM, Transcript.of([f"So:\n```python\n{program}\n```\n"]))
    assert said is not None
    assert said.startswith("```output\n")
    assert said.endswith("\n```\n")
    return said[10:-5]


@pytest.mark.parametrize(
    ("program", "output"),
    [
        ("print(2 * 3)", "6"),
        ("print(1)\n\nprint(2)\n", "1\n2"),
        ("2 * 3", "(no output)"),
        ("print(1)\n1 / 0", "1\nZeroDivisionError: division by zero"),
        ("print((1)", "SyntaxError: '(' was never closed"),
        ("import sys\nsys.exit('no')", "no"),
        ("print('x' * 41)", "x" * 40 + "..."),
        ("print('x' * 40)", "x" * 40),
        ("raise ValueError('x' * 99)", "ValueError: " + "x" * 28),
        ("while True: print('x')", "x\n" * 20 + "..."),
        ("while True: pass", "TimeoutError: the program took too long"),
        ("import os\nos.abort()", "SystemError: the program was killed"),
        ("print(object())", "<object object at 0x...>"),
        ("print('é\\x1b[2J', chr(0x202e))", "\\xe9\\x1b[2J \\u202e"),
        ("import random\nprint(random.Random(5).random() < 1)", "True"),
    ],
)
def test_replies(task, program, output):
    assert reply_to(task, program) == output


def test_a_reply_repeats_in_a_process_of_its_own(task):
    program = "import random\nprint(random.random(), {*'abcdef'}, hash('x'))"
    first = reply_to(task, program)
    python_tool.run.cache_clear()
    assert reply_to(pickle.loads(pickle.dumps(task)), program) == first


def test_programs_know_nothing_of_each_other(task):
    turns = ["```python\nx = 5\n```\n", "```output\n(no output)\n```\n", "```python\nprint(x)\n```\n"]
    assert "NameError" in str(task.reply(PROBLEM, Transcript.of(turns)))


def test_worked_solutions_are_what_the_tool_replies_to(task):
    for problem in [*task.split("test"), *task.sample(12, seed=0)]:
        turns = Transcript.of(problem.solution.turns).turns  # type: ignore[attr-defined]
        assert len(turns) % 2 == 1
        for number in range(1, len(turns) + 1, 2):
            reply = turns[number] if number < len(turns) else None
            assert task.reply(problem, Transcript.of(turns[:number])) == reply


def test_an_episode_can_be_played(task):
    """A policy that copies: it computes from left to right, and writes down what it is told last."""
    for problem in task.split("test"):
        first, *steps = problem.prompt.strip().split(", ")
        signs = {"plus": "+", "minus": "-", "times": "*"}
        turns: list[str] = []
        for step in steps:
            name, number = step.split()
            turns.append(f"```python\nprint({first} {signs[name]} {number})\n```")
            reply = task.reply(problem, Transcript.of(turns))
            assert reply is not None
            turns.append(reply)
            first = reply.splitlines()[1]
        turns.append(f"#### {first}")
        said = Transcript.of(turns)
        assert task.reply(problem, said) is None
        assert task.grade(problem, said).reward == 1


def test_the_answer_is_the_policys_own(task):
    """Not what a program prints, whoever wrote the text that stands there."""
    printed = ["```python\nprint('#### 6')\n```\n", "```output\n#### 6\n```\n", "I do not know."]
    assert task.answer(Transcript.of(printed)) is None
    assert task.grade(PROBLEM, Transcript.of(printed)).verdict == "unparseable"
    assert task.grade(PROBLEM, Transcript.of([*printed[:2], "#### 7\n"])).verdict == "wrong"
    assert task.grade(PROBLEM, Transcript.of([*printed[:2], "#### 6.0\n"])).verdict == "correct"
    assert task.grade(PROBLEM, "#### 6").verdict == "correct"  # in the head
    assert task.grade(PROBLEM, "").verdict == "unparseable"


def test_all_of_it_is_made_of_symbols(task):
    tokenizer = make_symbol_tokenizer(task.symbols)
    texts = [problem.prompt + problem.solution for problem in [*task.split("test"), *task.sample(50, seed=1)]]
    texts += [reply_to(task, program) for program in ("print('é~\\t')", "x = (", "import numpy", "print([{1: 'a'}])")]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_cuts_of_a_turn_are_stopping_times(task):
    for problem in task.sample(12, seed=2):
        for turn in problem.solution.turns[::2]:  # type: ignore[attr-defined]
            assert not any(looks_ahead(task.segment, turn, n) for n in range(len(turn) + 1))


def test_gsm8k_is_read_as_it_is(tmp_path):
    row = {"question": " Three boxes of 6? ", "answer": "3*6=<<3*6=18>>18\n#### 1,018"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(row | {"answer": "18"}) + "\n")
    task = PythonTool(PythonToolConfig(path=str(tmp_path), num_validation=0))
    (problem,) = task.split("train")
    assert problem.prompt.startswith("Three boxes of 6?\n\nTo compute, write a ```python block")
    assert (problem.answer, problem.solution) == ("1,018", "")
    assert task.grade(problem, "#### 1018").reward == 1
    with pytest.raises(UserError, match=r"test.jsonl:1 \(no number after '####'"):
        task.split("test")
