"""The first lines that the interpreter in the sandbox runs: limits, then the program, which arrives on its input.

It is not imported: its text is passed to `python -c` with a call of `main` behind it, so the standard library is all it
has. It says `ready` once all is in place, and only then is it sent a program. So what a program meets is never half a
sandbox, and no program runs whose parent is gone.
"""

import os
import resource
import sys

READY = b"ready\n"
KILL = 9
SET_DEATH_SIGNAL, SET_SECCOMP, FILTER, NO_NEW_PRIVILEGES = 1, 22, 2, 38  # linux/prctl.h
CREATE_RULES, ADD_RULE, RESTRICT = 444, 445, 446  # of Landlock: linux/landlock.h
NEWEST_KNOWN, LEAST = 5, 3  # versions of Landlock; before 3 a file could be cut short
RIGHTS = {3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
READ_FILE, READ_FOLDER = 0b101, 0b1101  # execute and read; and list


def main(memory: int, cpu_s: int, locks: dict) -> None:
    """Bytes, seconds, and the arguments of `lock_in`, or none of them where something else has locked it in."""
    if locks:
        lock_in(**locks)
    limit(memory, cpu_s)
    sys.argv[:] = ["program.py"]
    sys.path[:] = [folder for folder in sys.path if folder]
    os.environ.clear()
    os.write(1, READY)
    source = read_program()
    if "random" in source:
        import random

        random.seed(0)
    run(source)


def limit(memory: int, cpu_s: int) -> None:
    """Hard limits, which no program can raise again. A smaller one that holds already stays."""
    limits = {"AS": memory, "CPU": cpu_s, "STACK": memory // 4, "CORE": 0, "FSIZE": 0, "NOFILE": 32}
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        inherited = resource.getrlimit(kind)[1]
        most = most if inherited == resource.RLIM_INFINITY else min(most, inherited)
        resource.setrlimit(kind, (most, most))


def read_program() -> str:
    """Its length in bytes on a line of its own, then the text; what follows is the program's own input."""
    digits = b""
    while not digits.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)  # the parent is gone
        digits += byte
    missing, text = int(digits), b""
    while missing > len(text):
        more = os.read(0, missing - len(text))
        if not more:
            os._exit(0)
        text += more
    return text.decode()


def run(source: str) -> None:
    """As the main module; an error is reported without the lines of this file."""
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(source, "program.py", "exec"), module.__dict__)
    except Exception as error:
        trace = error.__traceback__
        sys.excepthook(type(error), error.with_traceback(trace and trace.tb_next), None)
        sys.stdout.flush()
        sys.exit(1)


def lock_in(parent: int, files: list, folders: list, system_calls: bytes) -> None:
    """Without namespaces: no file but these can be opened, and none written; no privileges; the system calls listed.

    Raises OSError where the kernel does not do so.
    """
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)

    def ask(call, *arguments) -> int:
        result = call(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    ask(libc.prctl, SET_DEATH_SIGNAL, KILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    ask(libc.prctl, NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    version = ask(libc.syscall, CREATE_RULES, None, ctypes.c_size_t(0), 1)
    if version < LEAST:
        raise OSError(f"Landlock {version} is too old: {LEAST} came with Linux 6.2")
    handled = struct.pack("<Q", RIGHTS[min(version, NEWEST_KNOWN)])
    rules = ask(libc.syscall, CREATE_RULES, handled, ctypes.c_size_t(len(handled)), 0)
    for rights, paths in ((READ_FILE, files), (READ_FOLDER, folders)):
        for path in paths:
            place = os.open(path, os.O_PATH)
            ask(libc.syscall, ADD_RULE, rules, 1, struct.pack("<Qi", rights, place), 0)
            os.close(place)
    ask(libc.syscall, RESTRICT, rules, 0)
    os.close(rules)
    ask(libc.capset, struct.pack("<Ii", 0x20080522, 0), bytes(24))
    code = ctypes.create_string_buffer(system_calls, len(system_calls))
    address = struct.pack("<HxxxxxxQ", len(system_calls) // 8, ctypes.addressof(code))
    ask(libc.prctl, SET_SECCOMP, FILTER, address, 0, 0)
