"""Text from outside on its way to a terminal or a log."""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings

KEPT = "\n\t"
COLOUR = re.compile("\x1b" + r"\[[0-9;]*m")


def printable(text: str) -> str:
    r"""Control characters written out, so that no text can move the cursor, set the title or fill the clipboard.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(c if is_harmless(c) else escaped(c) for c in text)


def is_harmless(character: str) -> bool:
    return character in KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def echo(text: str) -> None:
    print(printable(text), flush=True)


def tame(*loggers: logging.Logger) -> None:
    """Makes what libraries warn of printable too: their sentences quote names of models and text of configurations."""
    for handler in (logging.lastResort, *(handler for logger in loggers for handler in logger.handlers)):
        if handler and not any(isinstance(each, Printable) for each in handler.filters):
            handler.addFilter(Printable())
    if warnings.formatwarning is standard_warning:
        warnings.formatwarning = lambda *args, **kwargs: printable(standard_warning(*args, **kwargs))


standard_warning = warnings.formatwarning


class Printable(logging.Filter):
    """Colours are taken out before, which is all that a library means by an escape sequence."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(COLOUR.sub("", record.getMessage())), ()
        return True
