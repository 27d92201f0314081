"""LaTeX formulas without relations, read into trees. Nothing is executed, and lengths and depths are bounded.

A tree is a tuple whose first member names the operation. Numerals, fractions of two numerals, mixed numbers and
scientific notation are one `number` each; arithmetic that is left to do stays an operation, so that a grader can tell
a value from a sum that has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]

MAX_CHARS = 600
MAX_DEPTH = 40
MAX_DIGITS = 400
"""Of a numeral as written."""
TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<command>\\[a-zA-Z]+)|(?P<letter>[a-zA-Z])|(?P<mark>[-+*/^_!(){}\[\]|])"
)
GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp"
GREEK, FUNCTIONS = frozenset(GREEK_NAMES.split()), frozenset(FUNCTION_NAMES.split())


class UnreadableError(ValueError):
    """Not a formula that this module knows, or one too large to evaluate."""


def parse(text: str) -> Tree:
    if len(text) > MAX_CHARS:
        raise UnreadableError("too long")
    parser = Parser(list(tokens(text)))
    tree = parser.sum()
    if parser.kind:
        raise UnreadableError(f"{parser.text!r} is left over")
    return tree


def tokens(text: str) -> Iterator[tuple[str, str]]:  # (kind, text)
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = TOKEN.match(text, position)
        if match is None or len(match[0]) > MAX_DIGITS:
            raise UnreadableError(f"{text[position : position + 10]!r} is no part of a formula")
        yield str(match.lastgroup), match[0]
        position = match.end()


class Parser:
    """Recursive descent: sum, product, power, atom."""

    def __init__(self, found: list[tuple[str, str]]):
        self._tokens, self._next, self._depth = found, 0, 0

    @property
    def kind(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    @property
    def text(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def take(self, *texts: str) -> str:
        """The next token if it is one of these, else nothing."""
        text = self.text
        if text not in texts or not text:
            return ""
        self._next += 1
        return text

    def demand(self, text: str) -> None:
        if not self.take(text):
            raise UnreadableError(f"{text!r} is missing")

    def sum(self) -> Tree:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError("too deep")
        terms = [self.signed_product()]
        while self.text in ("+", "-"):
            self.take("+")  # a minus is the next term's sign
            terms.append(self.signed_product())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def signed_product(self) -> Tree:
        sign = self.take("-", "+")
        tree = self.product()
        return negate(tree) if sign == "-" else tree

    def product(self) -> Tree:
        factors = [self.power()]
        while True:
            if self.take("*", r"\cdot", r"\times"):
                factors.append(negate(self.power()) if self.take("-") else self.power())
            elif self.take("/", r"\div"):
                factors.append(divide(factors.pop(), self.power()))
            elif self.kind == "number":
                if not (self.is_mixed(factors) and self.is_fraction_ahead()):
                    raise UnreadableError("two numbers without an operation between them")
                top = self.atom()
                self.demand("/")
                factors[-1] = add_mixed(factors[-1], divide(top, self.atom()))
            elif self.starts_factor():
                is_fraction = self.text == r"\frac"
                factor = self.power()
                if is_fraction and factor[0] == "number" and self.is_mixed(factors):
                    factors[-1] = add_mixed(factors[-1], factor)
                else:
                    factors.append(factor)
            else:
                return scientific(factors) if len(factors) > 1 else factors[0]

    def is_mixed(self, factors: list[Tree]) -> bool:
        return len(factors) == 1 and is_numeral(factors[0])

    def is_fraction_ahead(self) -> bool:
        """Whether `1/2` stands here, as in `3 1/2`."""
        ahead = self._tokens[self._next : self._next + 3]
        return len(ahead) == 3 and ahead[1][1] == "/" and ahead[2][0] == "number"

    def starts_factor(self) -> bool:
        return self.kind in ("letter", "number") or self.text in ("(", "{") or is_operand(self.text)

    def power(self) -> Tree:
        tree = self.atom()
        while True:
            if self.take("!"):
                tree = ("factorial", tree)
            elif self.take("^"):
                if self.take(r"\circ"):
                    tree = ("degrees", tree)
                elif self.is_braced_degree():
                    self._next += 3
                    tree = ("degrees", tree)
                else:
                    tree = ("power", tree, self.argument(whole_number=True))
            else:
                return tree

    def is_braced_degree(self) -> bool:
        return [text for _, text in self._tokens[self._next : self._next + 3]] == ["{", r"\circ", "}"]

    def argument(self, *, whole_number: bool = False) -> Tree:
        """What a command takes: a group or, as in TeX, one character."""
        if self.take("{"):
            tree = self.sum()
            self.demand("}")
            return tree
        if self.kind == "number":
            text = self.text
            if whole_number or len(text) == 1:
                self._next += 1
                return number(text)
            self._tokens[self._next] = ("number", text[1:])
            return number(text[0])
        if self.take("-") and whole_number:
            return negate(self.argument(whole_number=True))
        return self.atom()

    def atom(self) -> Tree:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError("too deep")
        tree = self.group() or self.leaf()
        self._depth -= 1
        return tree

    def group(self) -> Tree | None:
        for opening, closing in (("(", ")"), ("{", "}"), ("|", "|")):
            if self.take(opening):
                tree = self.sum()
                self.demand(closing)
                return ("absolute", tree) if opening == "|" else tree
        return None

    def leaf(self) -> Tree:
        kind, text = self.kind, self.text
        self._next += 1
        if kind == "number":
            return number(text)
        if kind == "letter":
            return ("constant", text) if text in "ei" and self.text != "_" else ("symbol", text + self.subscript())
        name = text[1:]
        if text == r"\pi":
            return ("constant", "pi")
        if text == r"\frac":
            return divide(self.argument(), self.argument())
        if text == r"\sqrt":
            return self.root()
        if name in GREEK:
            return ("symbol", text + self.subscript())
        if kind == "command" and name in FUNCTIONS:
            return self.function(name)
        raise UnreadableError(f"{text!r} is no operand")

    def root(self) -> Tree:
        degree: Tree = ("number", Fraction(2), False)
        if self.take("["):
            degree = self.sum()
            self.demand("]")
        return ("root", self.argument(whole_number=True), degree)

    def subscript(self) -> str:
        """As written, since `E_2` and `E_3` are two names."""
        if not self.take("_"):
            return ""
        if not self.take("{"):
            self._next += 1
            return "_" + self._tokens[self._next - 1][1] if self._next <= len(self._tokens) else ""
        found = "_"
        while self.text and self.text != "}":
            found += self.text
            self._next += 1
        self.demand("}")
        return found

    def function(self, name: str) -> Tree:
        base = exponent = None
        if self.take("_"):
            base = self.argument(whole_number=True)
        if self.take("^"):
            exponent = self.argument(whole_number=True)
        if self.text in ("(", "{"):
            inside = self.power()
        else:
            factors = [self.power()]
            while self.kind == "letter" or self.text in (r"\pi", r"\frac", r"\sqrt") or self.text[1:] in GREEK:
                factors.append(self.power())
            inside = factors[0] if len(factors) == 1 else ("multiply", *factors)
        tree: Tree = ("function", name, inside)
        if base is not None:
            tree = ("divide", ("function", "ln", inside), ("function", "ln", base))
        return tree if exponent is None else ("power", tree, exponent)


def is_operand(command: str) -> bool:
    return (
        command in (r"\frac", r"\sqrt", r"\pi")
        or command[1:] in GREEK
        or (command.startswith("\\") and command[1:] in FUNCTIONS)
    )


def number(text: str) -> Tree:
    return ("number", Fraction(text), False)


def is_numeral(tree: Tree) -> bool:
    """Whether it is written as digits alone, not as a fraction."""
    return tree[0] == "number" and not tree[2]


def negate(tree: Tree) -> Tree:
    if tree[0] == "number":
        return ("number", -tree[1], tree[2])
    if tree[0] == "multiply" and tree[1][0] == "number":
        return ("multiply", negate(tree[1]), *tree[2:])
    return ("negate", tree)


def divide(top: Tree, bottom: Tree) -> Tree:
    if is_numeral(top) and is_numeral(bottom):
        if bottom[1] == 0:
            raise UnreadableError("division by zero")
        return ("number", top[1] / bottom[1], True)
    return ("divide", top, bottom)


def add_mixed(whole: Tree, part: Tree) -> Tree:
    """`3 1/2`; anything else that a whole number stands before is neither a mixed number nor clearly a product."""
    if whole[1].denominator != 1 or whole[1] < 0 or not 0 < part[1] < 1:
        raise UnreadableError("not a mixed number")
    return ("number", whole[1] + part[1], True)


def scientific(factors: list[Tree]) -> Tree:
    """The product; `6.02 \\times 10^{23}` is a number."""
    if len(factors) == 2 and is_numeral(factors[0]) and factors[1][0] == "power" and 1 <= abs(factors[0][1]) < 10:
        _, base, exponent = factors[1]
        if (
            base == number("10")
            and is_numeral(exponent)
            and exponent[1].denominator == 1
            and abs(exponent[1]) < MAX_DIGITS
        ):
            return ("number", factors[0][1] * Fraction(10) ** int(exponent[1]), False)
    return ("multiply", *factors)
