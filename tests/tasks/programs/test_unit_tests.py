"""A grade is earned by values alone: programs that know the grader's ways, and every way to hand over a value."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from vineppo.sandbox import Limits, Sandbox
from vineppo.tasks.programs.unit_tests import (
    Score,
    Script,
    UnitTests,
    calls_passed,
    candidate,
    examiner,
    is_value,
    make_call,
)
from vineppo.tasks.programs.values import pack, unpack

SECRET = 987_654_321
CALLS = UnitTests(calls=[make_call("f", [n], n + SECRET) for n in range(3)])
SCRIPT = UnitTests(
    scripts=[
        Script(
            f"def check(candidate):\n    for n in range(3):\n        assert candidate(n) == n + {SECRET}\ncheck(f)",
            ["f"],
            1,
            setup=f"SECRET = {SECRET}",
        )
    ]
)
STREAMS = UnitTests(streams=[(f"{n}\n", f"{n + SECRET}\n") for n in range(3)])
KINDS = {"calls": CALLS, "script": SCRIPT, "streams": STREAMS}
RIGHT = f"def f(x):\n    return x + {SECRET}\nif __name__ == '__main__': print(f(int(input())))"


@pytest.fixture(params=["bwrap", "landlock"])
def sandbox(request) -> Sandbox:
    made = Sandbox(request.param, Limits(cpu_s=1, timeout_s=4.0, memory_mb=128))
    if not made.works():
        pytest.skip(f"{request.param} does not work here")
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_program_passes_all_and_a_wrong_one_none(sandbox, kind):
    assert KINDS[kind].score(sandbox, RIGHT) == Score(3, 3)
    assert KINDS[kind].score(sandbox, RIGHT.replace(str(SECRET), "0")).num_passed == 0
    half = RIGHT.replace("return x", "return x % 2")  # right for 0 and 1
    assert KINDS[kind].score(sandbox, half) == Score(2, 3)


SEARCH = f"""
import gc, os, re, sys
def found(value, x):
    for n in range(3):
        if type(value) is int and value > 10**8 and (value - n) % 1_000_003 == {SECRET % 1_000_003}:
            return value - n + x
def search(x):
    frame, values = sys._getframe(), []
    while frame:
        values += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for thing in gc.get_objects():
        values += thing.values() if type(thing) is dict else thing if type(thing) in (list, tuple) else ()
    texts = [value for value in values if type(value) is str]
    above = f'/proc/{{os.getppid()}}'
    for folder in '/proc/self', above, f'{{above}}/fd', '/empty', '/tmp', os.getcwd():
        for name in 'mem', 'environ', 'cmdline', *map(str, range(20)):
            try: texts.append(open(os.path.join(folder, name), 'rb').read(100_000).decode(errors='replace'))
            except (OSError, ValueError, OverflowError): continue
    values += [int(digits) for text in texts for digits in re.findall(r'\\b[0-9]{{9}}\\b', text)]
    return next(filter(None, (found(value, x) for value in values)), None)
f = search
if __name__ == '__main__': print(search(int(input())))
"""
FAKES = {
    "exit": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef f(x): os._exit(0)",
    "system exit": "import sys\ndef f(x): sys.exit(0)",
    "exit by an error that is none": "def f(x): raise SystemExit(0)",
    "a value equal to all": (
        "class Any(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = int.__hash__\ndef f(x): return Any(x)\nprint(Any(1))"
    ),
    "a text equal to all": "class Any(str):\n    def __eq__(self, other): return True\ndef f(x): return Any('x')",
    "an object equal to all": "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.all = lambda *a: True\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.compile = builtins.exec = lambda *a: None\ndef f(x): return x"
    ),
    "patched json": (
        'import json\njson.dumps = lambda *a, **k: \'{"passed": 3, "failed": 0, "finished": true}\'\n'
        "json.loads = lambda *a, **k: {}\ndef f(x): return x"
    ),
    "the examiner's last word": (
        "import os\n"
        "for fd in range(64):\n"
        '    try: os.write(fd, b\'{"passed": 3, "failed": 0, "finished": true}\\n\' * 9)\n'
        "    except OSError: pass\n"
        "def f(x): return x"
    ),
    "a reply that is none": 'import os\nos.write(1, b\'{"value": {"value": true}}\\n[]\\n{}\\nnull\\n\\xff\\n\' * 9)',
    "deep replies": "import os\nos.write(1, b'{\"value\": ' + b'[' * 40_000 + b'\\n')\ndef f(x): return x",
    "printed success": "print('3 passed')\nprint('OK')\ndef f(x):\n    print('correct')\n    return True",
    "not a number": "def f(x): return float('nan')",
    "endless": "def f(x):\n    while True: pass",
    "endless printing": "def f(x):\n    while True: print('x' * 1000)",
    "asleep behind a closed output": "import os, time\nos.close(1)\ntime.sleep(1000)\ndef f(x): return x",
    "memory": "def f(x): return 'x' * (1 << 40)",
    "a flood": "def f(x): return 'x' * (1 << 25)",
    "recursion": "def f(x):\n    y = []\n    for _ in range(100_000): y = [y]\n    return y",
    "a thread": "import threading, time\nthreading.Thread(target=time.sleep, args=[1000]).start()\ndef f(x): return x",
    "own questions": 'print(\'{"function": "f", "arguments": [0]}\')\ndef f(x): return input()',
    "own main": "import sys\nsys.modules['__main__'].is_value = lambda *a: True\ndef f(x): return x",
    "search": SEARCH,
    "error": "def f(x): raise AssertionError('correct')",
    "stop": "def f(x): raise StopIteration(x)",
    "keyboard": "def f(x): raise KeyboardInterrupt",
}


def test_the_search_finds_what_is_there(sandbox):
    """The measure of that fake: it reads the frames, the objects and the texts of its own process."""
    hidden = f"{SEARCH}\nhidden = [{SECRET + 2}]\n"
    assert CALLS.score(sandbox, hidden) == Score(3, 3)
    assert CALLS.score(sandbox, f"{SEARCH}\nhidden = 'it is {SECRET}'") == Score(3, 3)


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_fake_passes_a_test(sandbox, kind, fake):
    if sandbox.backend == "landlock" and kind != "calls":
        pytest.skip("what decides is the same under both")
    score = KINDS[kind].score(sandbox, FAKES[fake])
    assert score.num_passed == 0
    assert score.num_tests >= 1


def test_what_could_be_guessed_earns_what_a_guess_earns(sandbox):
    """The measure of the fakes: where a test is true of anything, anything passes."""
    anything = UnitTests(scripts=[Script("assert f(0) != 5\nassert f(1) == 5", ["f"], 2)])
    assert anything.score(sandbox, "def f(x): return x") == Score(1, 2)


def test_no_error_of_the_programs_ends_the_tests_own_loop(sandbox):
    mapped = "assert all(map(lambda x: f(x) == 5, [1, 2]))\nassert sum(1 for _ in map(f, [1, 2])) == 0"
    tests = UnitTests(scripts=[Script(mapped, ["f"], 2)])
    assert tests.score(sandbox, "def f(x): raise StopIteration") == Score(0, 2)
    assert tests.score(sandbox, "def f(x): return 5") == Score(1, 2)


def test_the_program_is_told_names_and_arguments_alone():
    """In all that is ever sent to its process."""
    sent: list[str] = []

    class Recorder:
        def __init__(self, program: str):
            sent.append(program)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def send(self, text: str) -> None:
            sent.append(text)

        def read_line(self) -> str:
            return '{"value": 0}'

    class Recording:
        start = Recorder

    assert calls_passed(Recording(), "def f(x): return x", CALLS.calls) == 0  # type: ignore[arg-type]
    assert len(sent) == 4
    assert not any(str(n + SECRET) in text for text in sent for n in range(3))
    assert str(SECRET) not in candidate("def f(x): return x")
    assert "return x" not in examiner("", "assert f(1)", ["f"])


def random_value(rng: random.Random, depth: int = 3) -> Any:
    kinds = ["int", "float", "text", "none", "bool", "bytes", "complex"]
    kind = rng.choice([*kinds, "list", "tuple", "dict", "set", "frozenset"] if depth else kinds)
    plain = {
        "int": rng.randint(-(10**30), 10**30), "float": rng.choice([0.1, -0.0, 1e300, float("inf")]), "none": None,
        "text": rng.choice(["", "a\n", "数", "\ud800", '{"tuple": []}']), "bool": rng.random() < 0.5,
        "bytes": b"\0a\xff", "complex": 1.5 - 2j,
    }  # fmt: skip
    if kind in plain:
        return plain[kind]
    if kind in ("set", "frozenset"):
        return {"set": set, "frozenset": frozenset}[kind](rng.sample(range(9), rng.randint(0, 4)))
    items = [random_value(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    if kind == "dict":
        return {rng.choice([1, "a", (1, "b"), None, 2.5]): item for item in items}
    return items if kind == "list" else tuple(items)


def test_plain_values_come_back_as_they_were():
    rng = random.Random(0)
    for _ in range(500):
        value = random_value(rng)
        back = unpack(json.loads(json.dumps(pack(value))))
        assert back == value
        assert repr(back) == repr(value)


def test_values_cross_the_sandbox(sandbox):
    rng = random.Random(1)
    calls = [make_call("f", [value], [value]) for value in (random_value(rng) for _ in range(40))]
    assert calls_passed(sandbox, "def f(x): return [x]", calls) == 40


@pytest.mark.parametrize("value", [object(), range(3), iter([]), len, {1: object()}, [{2, 3}, map(int, [])]])
def test_what_is_no_plain_value_is_not_handed_over(value):
    with pytest.raises(TypeError, match="no plain value"):
        pack(value)


@pytest.mark.parametrize(
    "reply",
    ["", "null", "[]", "{}", '{"value": {}}', '{"value": {"set": [[]]}}', '{"value": {"dict": 3}}',
     '{"value": {"eval": "5"}}', '{"value": {"tuple": {"bytes": 5}}}',
     '{"value": ' + "[" * 100_000, '{"value": ' + "9" * 10_000 + "}", '{"error": "5", "message": 5}', '{"value": "5"}',
     '{"value": [5]}', '{"value": {"complex": [1, 2, 3]}}', '{"value": {"bytes": 5000000000000}}'],
)  # fmt: skip
def test_a_reply_may_be_anything(reply):
    assert not is_value(reply, 5)
    assert is_value('{"value": 5}', 5)


def test_tests_and_programs_are_told_apart():
    assert UnitTests.read(CALLS.write()) == UnitTests(calls=json.loads(json.dumps(CALLS.calls)), streams=[], scripts=[])
    assert UnitTests.read(SCRIPT.write()) == UnitTests(calls=[], streams=[], scripts=list(SCRIPT.scripts))
    for program in ("{}", "[]", "5", "{'calls': [], 'streams': [], 'scripts': []}", "def f(): pass", "[" * 100_000):
        assert UnitTests.read(program) is None
