"""Answers for a scorer that hands them to Python's `eval`, as sympy's parser does too: only what can do nothing there.

What a policy writes is not to be run: `exec(chr(105) + ..)` is a formula as well, of functions that sympy knows.
"""

from __future__ import annotations

import ast
import warnings

FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
    "exp", "log", "ln", "sqrt", "Abs", "abs", "erf", "Rational",
}  # fmt: skip
CONSTANTS = {"pi", "oo"}
"""And every name of one letter."""
LITERAL = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Name, ast.Load, ast.UnaryOp, ast.UAdd, ast.USub)
FORMULA = (
    ast.Expression,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.UnaryOp,
    ast.unaryop,
    ast.BinOp,
    ast.operator,
)


def as_formula(answer: str) -> str | None:
    """The same formula as Python writes it: of numbers, names, operators and functions of mathematics; None for
    anything else."""
    tree = parse(answer)
    if tree is None or not all(map(is_of_formula, ast.walk(tree))):
        return None
    return ast.unparse(tree)


def is_plain(answer: str) -> bool:
    """Whether `eval` would at most build lists of numbers, texts and names. It reads nothing that is no Python."""
    tree = parse(answer)
    return tree is None or all(isinstance(node, LITERAL) for node in ast.walk(tree))


def is_of_formula(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)  # sympy's functions read texts as formulas, by `eval` again
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
    if isinstance(node, ast.Name):
        return len(node.id) == 1 or node.id in CONSTANTS | FUNCTIONS
    return isinstance(node, FORMULA)


def parse(answer: str) -> ast.Expression | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
