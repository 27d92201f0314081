"""The watch sees what an answer might run, and lets pass what sympy does with every literal."""

import pytest
from tasks.watched import Watch


@pytest.fixture(scope="module")
def watch():
    return Watch()


def seen(watch: Watch, source: str) -> bool:
    watch.seen.clear()
    watch.on = True
    try:
        eval(compile(source, "<string>", "eval"), {"Integer": int, "Float": float})
    finally:
        watch.on = False
    return bool(watch.seen)


def test_literals_pass(watch):
    assert not seen(watch, "Integer (12 )")
    assert not seen(watch, "Float('1.5')")


@pytest.mark.parametrize("source", ["__import__('math')", "open('/dev/null').close()", "Integer(1) + Integer(2)", "1"])
def test_all_else_is_seen(watch, source):
    assert seen(watch, source)
