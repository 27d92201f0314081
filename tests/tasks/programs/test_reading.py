"""Where a program may be cut, which is known when its line is over; and what is read of it."""

from __future__ import annotations

import ast
import random
from itertools import pairwise

import pytest

from vineppo.segments import are_cuts, looks_ahead
from vineppo.tasks.programs.reading import MAX_CHARS, cut_statements, find_block, find_program, normal_form

PROGRAM = '''def f(x, y):
    """A text
    of two lines, with a ( in it."""
    z = [x,  # a ' and a (
         y]

    text = 'it\\'s # no comment ('
    total = x + \\
        y  # and "so
    return """a
    b""" + text  # \\
f(1, {"a": (2,
            3)})
'''
STATEMENTS = [
    "def f(x, y):\n",
    '    """A text\n    of two lines, with a ( in it."""\n',
    "    z = [x,  # a ' and a (\n         y]\n",
    "\n    text = 'it\\'s # no comment ('\n",
    '    total = x + \\\n        y  # and "so\n',
    '    return """a\n    b""" + text  # \\\n',
    'f(1, {"a": (2,\n            3)})\n',
]
SOUP = ["x = 1", "\n", "\n", '"""', "'''", "'", '"', "(", ")", "[", "]", "{", "}", "#", "\\", "```", "```python", " ",
        "def f():", "    ", "数", "\r"]  # fmt: skip


def pieces(text: str) -> list[str]:
    cuts = [0, *cut_statements(text), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if b > a]


def test_statements_are_the_segments():
    assert pieces(PROGRAM) == STATEMENTS


def test_every_cut_of_a_program_is_where_python_ends_a_statement():
    """Another way to compute them: the tree that Python makes of the text, every line of a header included."""
    tree, lines = ast.parse(PROGRAM), PROGRAM.splitlines(keepends=True)
    ends = {node.end_lineno or 0 for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    headers = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    places = [len("".join(lines[:number])) for number in sorted(ends | headers) if number]
    assert cut_statements(PROGRAM) == places


def test_lines_of_marks_belong_to_what_follows_and_end_what_was_open():
    said = "It is (so\n```python\nx = 1\ny = 2\n```\nIt's (done.\n"
    assert pieces(said) == ["It is (so\n```python\nx = 1\n", "y = 2\n", "```\nIt's (done.\n"]


def test_cuts_are_stopping_times():
    rng = random.Random(0)
    texts = [PROGRAM, *("".join(rng.choices(SOUP, k=rng.randint(1, 40))) for _ in range(600))]
    for text in texts:
        assert are_cuts(cut_statements(text), text)
        assert not any(looks_ahead(cut_statements, text, n) for n in range(len(text) + 1)), text


def test_each_character_of_a_long_response_is_looked_at_a_few_times():
    """Lines that end no statement would take minutes if each was looked at with all before it."""
    assert cut_statements("(" + "\n" * 200_000) == []
    assert cut_statements("\n" * 200_000 + "x\n") == [200_002]


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nIt is one.", "x = 1\n"),
        ("```py\nx = 1", "x = 1"),
        ("```python\nx = 1\n```\nno:\n```python\nx = 2\n```", "x = 2\n"),
        ("```output\n1\n```\n```python\nx = 1\n```\n", "x = 1\n"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
    ],
)
def test_the_program_is_the_last_block_or_all_there_is(response, program):
    assert find_program(response) == program
    assert (find_block(response) is None) == ("```" not in response)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("x=1 # so\n\n", "x = 1"),
        ("x = 'a'", 'x = "a"'),
        ("    x += 1\n    return x\n", "    x+=1\n    return   x"),
        ("if x:\n  y()", "if x: y()"),
    ],
)
def test_programs_that_differ_in_writing_alone_have_one_form(left, right):
    assert normal_form(left) == normal_form(right) is not None
    assert normal_form(str(normal_form(left))) == normal_form(left)


@pytest.mark.parametrize("text", ["", "# nothing", "x = (", "it is the five", "(" * 5_000, "\0", "x" * (MAX_CHARS + 1)])
def test_what_is_no_program_has_no_form(text):
    assert normal_form(text) is None
