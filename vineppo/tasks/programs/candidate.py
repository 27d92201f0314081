"""Inside of the sandbox, behind values.py: the program under test. It is asked one call at a time and says a value.

It is told names and arguments, never what should come out. Whatever the program does to this process, all it can have
it do is to say some value, which is looked at elsewhere.
"""

import io
import json
import os
import sys

from vineppo.tasks.programs.values import pack, unpack, write


class Silence(io.TextIOBase):
    """Takes what the program prints."""

    def write(self, text):
        return len(text)


def serve(program):
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), Silence(), Silence()
    module, failure = load(program)
    for line in requests:
        replies.write(write(call(module, failure, json.loads(line))))
        replies.flush()


def load(program):
    """The module that the program makes, and the error that it ended with, or None."""
    module = type(sys)("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
    except BaseException as error:
        return module, error
    return module, None


def call(module, failure, request):
    """A function of the module, or a method of its class Solution, as some of APPS have it."""
    try:
        if failure is not None:
            raise failure
        name = request["function"]
        owner = module if hasattr(module, name) or not hasattr(module, "Solution") else module.Solution()
        arguments, keywords = unpack(request["arguments"]), unpack(request.get("keywords", {"dict": []}))
        value = pack(getattr(owner, name)(*arguments, **keywords))
        write(value)
        return {"value": value}
    except BaseException as error:
        return {"error": type(error).__name__, "message": str(error)[:200]}
