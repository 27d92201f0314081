"""Ctrl-C and SIGTERM: leave at the next moment at which a checkpoint of the run is consistent."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """Raised where it is safe to stop. BaseException, so that no handler of errors swallows it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Shutdown:
    """While installed, a signal stops the run at once inside `interruptible()`, elsewhere at the next `check()`.

    A second signal is not waited for: it acts as it would without us.
    """

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._requested: int | None = None
        self._interruptible = False

    @contextmanager
    def installed(self) -> Iterator[Shutdown]:
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be thrown away: nothing that a checkpoint holds has changed yet."""
        self.check()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def check(self) -> None:
        if self._requested is not None:
            raise Stopped(self._requested)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._requested is None:
            signal.signal(signum, signal.SIG_DFL)
        self._requested = signum
        if self._interruptible:
            self._interruptible = False
            raise Stopped(signum)
        self._echo("stopping with a checkpoint once this iteration is done; once more to stop at once, without one")
