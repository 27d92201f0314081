"""A program that runs in the sandbox: what it is sent, what it says, and its end, all within limits."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Literal

from vineppo.sandbox.backends import ENVIRONMENT, Command
from vineppo.sandbox.boot import READY

Outcome = Literal["ended", "timeout", "killed", "output"]
START_S = 60.0
"""On the clock, until the interpreter is there; not counted against the program."""
MAX_ERRORS = 1 << 16
"""Bytes of the error output that are kept; more of it is a program that says too much."""
PIECE = 1 << 16


class SandboxError(RuntimeError):
    """The sandbox itself did not start; no program has run."""


class Process:
    """One program. To be used in a `with`, which ends it; it also dies with the thread that started it.

    `max_output` counts bytes of what was said and not yet read; a program that says more is ended.
    """

    def __init__(self, command: Command, program: str, *, timeout_s: float, max_output: int):
        descriptor = command.filter_descriptor
        try:
            self._process = subprocess.Popen(
                command.words, env=ENVIRONMENT, cwd="/", start_new_session=True, bufsize=0,
                pass_fds=() if descriptor is None else (descriptor,),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        finally:
            if descriptor is not None:
                os.close(descriptor)
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._stdin, self._stdout, self._stderr = self._process.stdin, self._process.stdout, self._process.stderr
        self._said, self._errors, self._unsent, self._closing = bytearray(), bytearray(), bytearray(), False
        self._max_output, self._deadline = max_output, time.monotonic() + START_S
        self._ending: Outcome | None = None
        self._selector = selectors.DefaultSelector()
        self._open = {self._stdout, self._stderr}
        for file in self._open:
            self._selector.register(file, selectors.EVENT_READ)
        self._is_waiting_to_write = False
        os.set_blocking(self._stdin.fileno(), False)
        self._start(program)
        self._deadline = time.monotonic() + timeout_s

    def send(self, text: str) -> None:
        """More of its input. It is on its way when this returns, and goes on when something is read."""
        self._unsent += text.encode()
        self._write()

    def close_input(self) -> None:
        self._closing = True
        self._write()

    def read_line(self) -> str | None:
        """The next line that it says, or None where it says no more, in time."""
        self._wait(lambda: b"\n" in self._said)
        line, found, rest = bytes(self._said).partition(b"\n")
        if not found:
            self.end()
            return None
        self._said = bytearray(rest)
        return line.decode(errors="replace")

    def read_all(self) -> str:
        """All that it says until its end, cut at the limit."""
        self._wait(lambda: False)
        return bytes(self._said[: self._max_output]).decode(errors="replace")

    @property
    def errors(self) -> str:
        return bytes(self._errors[:MAX_ERRORS]).decode(errors="replace")

    def end(self) -> tuple[Outcome, int]:
        """Waits for its end within the limit of time, and else makes one. How it came, and the exit code."""
        if self._ending is None:
            try:
                self._process.wait(max(0.0, self._deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._kill("timeout")
        code = self._process.wait()
        if self._ending is not None:
            return self._ending, code
        signaled = -code if code < 0 else code - 128  # bubblewrap hands the signal on as a shell does
        if signaled in (signal.SIGXCPU, signal.SIGKILL):
            return "timeout", code
        return ("killed" if signaled > 0 else "ended"), code

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # nothing where it has ended
        self._process.wait()
        self._selector.close()
        for file in (self._stdin, self._stdout, self._stderr):
            file.close()

    def _start(self, program: str) -> None:
        self._wait(lambda: len(self._said) >= len(READY))
        if self._said != READY:
            said = self.errors.strip().splitlines()
            self.__exit__(None, None, None)
            raise SandboxError(f"the sandbox did not start: {said[-1] if said else 'it said nothing'}")
        self._said.clear()
        text = program.encode(errors="replace")
        self._unsent += b"%d\n" % len(text) + text
        self._write()

    def _wait(self, enough: Callable[[], bool]) -> None:
        """Until there is enough, or it says no more."""
        while not enough() and self._ending is None and self._open:
            patience = self._deadline - time.monotonic()
            if patience <= 0:
                self._kill("timeout")
                return
            for key, _ in self._selector.select(patience):
                if key.fileobj is self._stdin:
                    self._write()
                else:
                    self._read(self._stdout if key.fileobj is self._stdout else self._stderr)

    def _read(self, file: IO[bytes]) -> None:
        into, most = (self._said, self._max_output) if file is self._stdout else (self._errors, MAX_ERRORS)
        piece = os.read(file.fileno(), PIECE)
        if not piece:
            self._selector.unregister(file)
            self._open.remove(file)
        into += piece
        if len(into) > most:
            self._kill("output")

    def _write(self) -> None:
        """As much as the pipe takes now; the rest when it takes more."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin.fileno(), self._unsent[:PIECE])]
        except BlockingIOError:
            if not self._is_waiting_to_write:
                self._selector.register(self._stdin, selectors.EVENT_WRITE)
                self._is_waiting_to_write = True
            return
        except OSError:  # it has closed its input, or is gone
            self._unsent.clear()
        if self._is_waiting_to_write:
            self._selector.unregister(self._stdin)
            self._is_waiting_to_write = False
        if self._closing:
            self._stdin.close()

    def _kill(self, why: Outcome) -> None:
        self._ending = why
        self._process.kill()
