"""What formulas are worth: exactly where they are rational, to many digits otherwise, at a bounded cost."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

from vineppo.tasks.answers.expressions import Tree, UnreadableError

MAX_BITS = 40_000
"""Of a power or factorial that is computed exactly."""
MAX_LOGARITHM = 100_000
"""Natural, of what is computed as a floating-point number."""

OTHER_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "log": "log10"}
NUM_POINTS = 3


def symbols(tree: Tree) -> set[str]:
    if tree[0] == "symbol":
        return {tree[1]}
    return set().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


def operations(tree: Tree) -> set[str]:
    """What is used to write it. Arithmetic with two rational numbers that is left to do is `undone`."""
    parts = [part for part in tree[1:] if isinstance(part, tuple)]
    found = set().union(*(operations(part) for part in parts))
    op = tree[0]
    if op in ("number", "symbol", "negate"):
        return found
    if op == "constant":
        return found | {tree[1]}
    if op == "function":
        return found | {"function"}
    num_rational = sum(part[0] == "number" for part in parts)
    if op == "root":
        return found | {"undone" if is_perfect(tree) else "root"}
    if op == "power" and num_rational == 2 and parts[1][1].denominator != 1:
        return found | {"root"}
    if op in ("factorial", "absolute") or num_rational > 1:
        return found | {"undone"}
    if op == "multiply" and sum(part[0] == "add" for part in parts) > 1:
        return found | {"product of sums"}
    return found | {op}


def is_perfect(root: Tree) -> bool:
    if root[1][0] != "number" or root[2][0] != "number":
        return False
    try:
        exact(root)
    except (UnreadableError, InexactError):
        return False
    return True


class InexactError(ValueError):
    """The value is no rational number, or is not known to be one."""


def exact(tree: Tree) -> Fraction:
    """The value of a tree of rational numbers and arithmetic."""
    op, *parts = tree
    if op == "number":
        return parts[0]
    if op in ("symbol", "constant", "function", "degrees"):
        raise InexactError
    values = [exact(part) for part in parts]
    if op == "add":
        return sum(values, Fraction(0))
    if op == "multiply":
        return product(values)
    if op == "negate":
        return -values[0]
    if op == "absolute":
        return abs(values[0])
    if op == "divide":
        if values[1] == 0:
            raise UnreadableError("division by zero")
        return values[0] / values[1]
    if op == "power":
        return exact_power(*values)
    if op == "root":
        return exact_root(*values)
    assert op == "factorial"
    if values[0].denominator != 1 or not 0 <= values[0] <= 3000:
        raise UnreadableError("factorial")
    return product([Fraction(factor) for factor in range(2, int(values[0]) + 1)])


def product(values: list[Fraction]) -> Fraction:
    result = Fraction(1)
    for value in values:
        result *= value
        if result.numerator.bit_length() + result.denominator.bit_length() > 2 * MAX_BITS:
            raise UnreadableError("too large")
    return result


def exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise InexactError
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (base == 0 and exponent <= 0) or abs(exponent) * bits > MAX_BITS:
        raise UnreadableError("power")
    return base ** int(exponent)


def exact_root(value: Fraction, degree: Fraction) -> Fraction:
    """Where numerator and denominator are perfect powers."""
    if degree.denominator != 1 or not 2 <= degree <= 100 or value < 0:
        raise InexactError
    parts = [integer_root(part, int(degree)) for part in (value.numerator, value.denominator)]
    return Fraction(*parts)


def integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    if low**degree != value:
        raise InexactError
    return low


def same_function(left: Tree, right: Tree, num_chars: int) -> bool:
    """Whether two trees have the same value wherever their symbols lie: exactly for rational numbers, otherwise at
    fixed points and with more digits than the `num_chars` characters of both could approximate."""
    try:
        return exact(left) == exact(right)
    except InexactError:
        return all(vanishes(evaluate_both(left, right, i, num_chars)) for i in range(num_points(left, right)))


def proportional(left: Tree, right: Tree, num_chars: int) -> bool:
    """Whether one tree is a constant, other than 0, times the other: `left = 0` and `right = 0` are one equation."""
    ratios = []
    for i in range(NUM_POINTS):
        a, b = evaluate_both(left, right, i, num_chars)
        if vanishes((a, 0)) or vanishes((b, 0)):
            return False
        ratios.append(a / b)
    return all(vanishes((ratio, ratios[0])) for ratio in ratios)


def num_points(left: Tree, right: Tree) -> int:
    return NUM_POINTS if symbols(left) | symbols(right) else 1


def evaluate_both(left: Tree, right: Tree, point: int, num_chars: int) -> tuple[Any, Any]:
    import mpmath

    mpmath.mp.dps = 60 + 2 * num_chars
    return evaluate(left, point), evaluate(right, point)


def vanishes(pair: tuple[Any, Any]) -> bool:
    """Whether the difference does, but for 30 digits' room for rounding."""
    import mpmath

    a, b = pair
    scale = max(abs(a), abs(b), mpmath.mpf(10) ** -20)
    return bool(abs(a - b) <= scale * mpmath.mpf(10) ** (30 - mpmath.mp.dps))


def evaluate(tree: Tree, point: int) -> Any:
    """A complex floating-point number at mpmath's working precision."""
    import mpmath

    op, *parts = tree
    if op == "number":
        return mpmath.mpf(parts[0].numerator) / parts[0].denominator
    if op == "symbol":
        return place(parts[0], point)
    if op == "constant":
        return {"pi": +mpmath.mp.pi, "e": +mpmath.mp.e, "i": mpmath.mpc(0, 1)}[parts[0]]
    if op == "function":
        return apply(parts[0], evaluate(parts[1], point))
    values = [evaluate(part, point) for part in parts]
    if op == "add":
        return mpmath.fsum(values)
    if op == "multiply":
        return mpmath.fprod(values)
    if op == "negate":
        return -values[0]
    if op == "degrees":
        return values[0] * mpmath.mp.pi / 180
    if op == "absolute":
        return abs(values[0])
    if op == "factorial":
        return mpmath.mpf(int(exact(tree)))
    if op in ("divide", "root") and values[1] == 0:
        raise UnreadableError("division by zero")
    if op == "divide":
        return values[0] / values[1]
    base, exponent = values[0], 1 / values[1] if op == "root" else values[1]
    if base == 0:
        if exponent == 0 or mpmath.re(exponent) < 0:
            raise UnreadableError("power of zero")
        return base
    if abs(exponent * mpmath.log(base)) > MAX_LOGARITHM:
        raise UnreadableError("power")
    return base**exponent


def apply(name: str, value: Any) -> Any:
    import mpmath

    limit = MAX_LOGARITHM if name in ("exp", "sinh", "cosh", "tanh") else 10**12
    if abs(value) > limit or abs(mpmath.im(value)) > MAX_LOGARITHM:
        raise UnreadableError(f"{name} of a large number")
    try:
        return getattr(mpmath, OTHER_NAMES.get(name, name))(value)
    except (ValueError, ZeroDivisionError) as error:
        raise UnreadableError(f"{name}: {error}") from None


def place(symbol: str, point: int) -> Any:
    """Where a symbol is put: a number between 1 and 3 of sixty digits, one time in three negative."""
    import mpmath

    digest = hashlib.blake2b(f"{point} {symbol}".encode(), digest_size=32).digest()
    drawn = int.from_bytes(digest, "big")
    value = 1 + mpmath.mpf(2 * drawn) / (1 << 256)
    return -value if (drawn + point) % NUM_POINTS == 0 else value
