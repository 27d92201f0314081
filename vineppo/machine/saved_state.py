"""What a run saves and finds again: a file that is another run's, or was changed, is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vineppo.types import UserError


@contextmanager
def restoring(path: Path, what: str) -> Iterator[None]:
    """Around all that reads the content of `path`: what fails there raises UserError, that it is not `what`."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not {what} ({reason}); remove the checkpoint") from None
