"""Inside of another sandbox than the candidate's, behind values.py: tests that are a script, such as HumanEval's.

The functions under test stand for those of the candidate's process: a call is sent there, and a plain value comes back.
Every `assert` that is reached is a test of its own, so one that fails does not keep the others from being counted.
"""

import ast
import builtins
import io
import json
import os
import sys

from vineppo.tasks.programs.values import pack, unpack, write


class CountedAssertions(ast.NodeTransformer):
    """`assert t` becomes `try: assert t` and a count of how it went. One that always holds is no test."""

    def visit_Assert(self, node):
        if isinstance(node.test, ast.Constant):
            return ast.Pass()
        (counted,) = ast.parse("try: pass\nexcept Exception: _count(False)\nelse: _count(True)").body
        assert isinstance(counted, ast.Try)
        counted.body = [node]
        return counted


def examine(setup, script, names):
    """`setup` is what the problem defines for its tests, `names` the functions under test."""
    replies, questions = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()
    counts = {True: 0, False: 0}

    def count(right):
        counts[right] += 1

    def ask(name):
        def function(*arguments, **keywords):
            request = {"function": name, "arguments": pack(list(arguments)), "keywords": pack(keywords)}
            questions.write(write(request))
            questions.flush()
            return understand(json.loads(replies.readline()))

        function.__name__ = name
        return function

    space = {"__name__": "tests"}
    try:
        exec(compile(setup, "setup.py", "exec"), space)
        space |= {name: ask(name) for name in names} | {"_count": count}
        tests = ast.fix_missing_locations(CountedAssertions().visit(ast.parse(script)))
        exec(compile(tests, "tests.py", "exec"), space)
        finished = True
    except Exception:
        finished = False
    questions.write(write({"passed": counts[True], "failed": counts[False], "finished": finished}))
    questions.flush()


def understand(reply):
    """The value that the candidate said, or the error that it raised, if that is one of Python's own.

    StopIteration would end a test's `map` before its first value, so that `all` of none is true.
    """
    if "error" not in reply:
        return unpack(reply["value"])
    kind = getattr(builtins, str(reply["error"]), None)
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, StopIteration):
        kind = RuntimeError
    raise kind(str(reply.get("message")))
