"""Text from outside on its way to a terminal or a log."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t"


def printable(text: str) -> str:
    r"""Control characters written out, so that no text can move the cursor, set the title or fill the clipboard.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(c if c in KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else escaped(c) for c in text)


def escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
