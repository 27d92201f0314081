"""The program in a response, its normal form, and where it may be cut."""

from __future__ import annotations

import ast
import re
import warnings

BLOCK = re.compile(r"```(?:python3?|py)[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
MARKS = re.compile(r"""\"{3}|'{3}|["'#()\[\]{}\n]|\\.|```""", re.DOTALL)
MAX_CHARS = 20_000
"""Of a program; longer ones are not read."""


def find_block(response: str) -> str | None:
    """What stands in the last ```python block, which may still be open."""
    blocks = BLOCK.findall(response)
    return blocks[-1] if blocks else None


def find_program(response: str) -> str:
    """The block's, or all of it where there is none."""
    block = find_block(response)
    return response if block is None else block


def normal_form(program: str) -> str | None:
    """The same for programs that differ in white space, comments and quotes; None for what is no Python, or nothing.

    The body of a function, which begins indented, is read as one.
    """
    for text in (program, f"if True:\n{program}"):
        tree = parse(text)
        if tree is not None:
            return write(tree.body if text is program else tree.body[0].body, program)  # type: ignore[attr-defined]
    return None


def write(statements: list[ast.stmt], program: str) -> str | None:
    """Python's own way to write them; the program's where it has none, as for some f-strings."""
    try:
        return ast.unparse(ast.Module(statements, [])) or None
    except (ValueError, RecursionError):
        return program.strip()


def parse(program: str) -> ast.Module | None:
    if len(program) > MAX_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the program writes, such as invalid escapes
            return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def cut_statements(text: str) -> list[int]:
    """Cuts after every line with text that ends a statement: not inside of brackets or long strings, nor behind a
    backslash. A line of ``` belongs to the segment behind it, and ends what was left open."""
    cuts: list[int] = []
    quote, depth, start = "", 0, 0
    for mark in MARKS.finditer(text):
        found, end = mark[0], mark.end()
        if found == "```":
            quote, depth = "", 0
        elif found == "\n" or (found == "\\\n" and quote == "#"):
            quote = quote if len(quote) == 3 else ""
            line = text[max(start, text.rfind("\n", start, end - 1) + 1) : end]
            if not quote and depth == 0 and line.strip() and not line.lstrip().startswith("```"):
                cuts.append(end)
                start = end
        elif quote:
            quote = "" if found == quote != "#" else quote
        elif found in ("'", '"', "'''", '"""', "#"):
            quote = found
        elif found in "([{":
            depth += 1
        elif found in ")]}":
            depth = max(0, depth - 1)
    return cuts
