"""What stands beside a number and is no part of it: units, and the words that are none."""

from __future__ import annotations

import re

SAME = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "s": "sec second", "min": "minute", "h": "hr hour", "day": "day", "week": "week", "month": "month", "year": "year",
    "g": "gm gram", "kg": "kilogram", "lb": "pound", "oz": "ounce", "ml": "milliliter millilitre", "l": "liter litre",
    "cent": "cent ¢", "dollar": "dollar usd", "degree": "deg degree", "radian": "rad radian",
    "mph": "mph", "am": "am", "pm": "pm", "percent": "percent pct",
}  # fmt: skip
KNOWN = {name: unit for unit, names in SAME.items() for name in (unit, *names.split())}
OTHER_WORDS = (
    "or and not no nor neither either but maybe perhaps if else unless except is isnt are be plus minus times over by "
    "more less than about roughly approximately almost nearly least most only mod base "
    "hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens "
    "half halves third thirds quarter quarters double twice zero one two three four five six seven eight nine ten "
    "factorial score tens lakh crore xor versus vs to until inverse negated negative positive eleven twelve twenty "
    "thirty forty fifty undefined infinity infinite wrong false"
)
NO_UNITS = frozenset(OTHER_WORDS.split())
"""Words that change what is said, so that a number beside one is no longer the answer."""
MAX_WORDS = 6
WORD = re.compile(r"[a-zA-Z]+")
STRANGE = re.compile(r"[^a-zA-Z\s.\-^(){}23/]|(?<![a-zA-Z^{])[23]")


def known_units(words: str) -> frozenset[str] | None:
    """The units of measurement among words such as "square inches" or "a.m."; None where the words are not units."""
    if not words.strip():
        return frozenset()
    found = WORD.findall(words.replace(".", "").lower())
    if (
        not found
        or len(found) > MAX_WORDS
        or NO_UNITS & set(found)
        or found[0] in ("squared", "cubed")
        or STRANGE.search(words)
    ):
        return None
    return frozenset(KNOWN[name] for word in found for name in (word, word.rstrip("s")) if name in KNOWN)


def agree(left: frozenset[str], right: frozenset[str]) -> bool:
    """A unit may be left out, and names that are none do not count; centimeters are not kilometers."""
    return not left or not right or left == right
