"""Problems of MBPP, HumanEval and APPS, as their files have them.

    mbpp        text or prompt, code, test_list, and test_setup_code or test_imports (Austin et al. 2021)
    humaneval   prompt, canonical_solution, test, entry_point (Chen et al. 2021)
    apps        question, solutions, input_output, starter_code (Hendrycks et al. 2021)

Each reader takes a record and gives what a problem is made of. It raises ValueError for what it cannot read.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vineppo.tasks.programs.reading import parse
from vineppo.tasks.programs.unit_tests import Script, UnitTests, make_call


@dataclass(frozen=True)
class Exercise:
    prompt: str
    tests: UnitTests
    solution: str = ""
    prefix: str = ""
    """What stands in front of every program: HumanEval's begin in the prompt."""


def read_mbpp(record: Mapping[str, Any], *, num_shown: int, max_tests: int) -> Exercise:
    """The first `num_shown` tests stand below the question: without one a function's name is anybody's guess."""
    question = record.get("text") or record.get("prompt")
    tests, code = record.get("test_list"), record["code"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError("neither text nor prompt is a text")
    if not isinstance(tests, list | tuple) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError("test_list is no list of texts")
    imports = record.get("test_imports") or []
    setup = "\n".join([str(record.get("test_setup_code") or ""), *map(str, imports)])
    lines = [question.strip(), *tests[:num_shown]]
    return Exercise("\n".join(lines), script_of("\n".join(tests), names_in(code), setup=setup), solution=code)


def read_humaneval(record: Mapping[str, Any], *, num_shown: int, max_tests: int) -> Exercise:
    prompt, entry = record["prompt"], record["entry_point"]
    source = f"{record['test']}\ncheck({entry})"
    tests = script_of(source, [entry], setup=prompt)  # some tests use what the prompt defines
    return Exercise(prompt, tests, solution=record["canonical_solution"], prefix=prompt)


def read_apps(record: Mapping[str, Any], *, num_shown: int, max_tests: int) -> Exercise:
    found = json_of(record, "input_output")
    inputs, outputs = (found.get(name) if isinstance(found, dict) else None for name in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        raise ValueError("input_output has no inputs with as many outputs")
    pairs = list(zip(inputs, outputs, strict=True))[:max_tests]
    function = found.get("fn_name")
    if function:
        # an output stands in a list of its own, as the arguments do
        calls = [make_call(function, given, out[0] if isinstance(out, list) and out else out) for given, out in pairs]
        tests = UnitTests(calls=calls)
    else:
        tests = UnitTests(streams=[(as_text(given), as_text(out)) for given, out in pairs])
    solutions = json_of(record, "solutions") if record.get("solutions") else []
    starter = str(record.get("starter_code") or "").strip()
    prompt = "\n".join(filter(None, [record["question"].strip(), starter]))
    return Exercise(prompt, tests, solution=next((text for text in solutions if parse(str(text))), ""))


def script_of(source: str, functions: list[str], *, setup: str) -> UnitTests:
    tree = parse(source)
    if tree is None or parse(setup) is None:
        raise ValueError("the tests are no Python")
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    asserted = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    num_tests = sum(not isinstance(node.test, ast.Constant) for node in asserted)
    tested = [name for name in functions if name in used]
    if not tested or not num_tests:
        raise ValueError("no test uses a function of the solution")
    return UnitTests(scripts=[Script(source, tested, num_tests, setup)])


def names_in(code: str) -> list[str]:
    """Functions and other names that a program defines at its top."""
    tree = parse(code)
    if tree is None:
        raise ValueError("code is no Python")
    assigned = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
                if isinstance(target, ast.Name)]  # fmt: skip
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return list(dict.fromkeys([*defined, *assigned]))


def json_of(record: Mapping[str, Any], name: str) -> Any:
    """APPS has JSON inside of JSON."""
    text = record.get(name)
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from None


def as_text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


Reader = Callable[..., Exercise]
FORMATS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "mbpp": (read_mbpp, ("code",)),
    "humaneval": (read_humaneval, ("prompt", "canonical_solution", "test", "entry_point")),
    "apps": (read_apps, ("question",)),
}
"""Name -> its reader, and the fields that must be texts."""
