"""The system calls that a program in the sandbox has, as a filter for the kernel (`man 2 seccomp`).

What is not listed does not exist for it (ENOSYS): sockets, signals, new processes and threads, memory that no limit
counts (memfd_create, shmget), the kernel's randomness. Only names that CPython asks for while it computes are listed.
"""

from __future__ import annotations

import struct

SYSTEM_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "nanosleep": (35, 101), "getpid": (39, 172),
    "execve": (59, 221), "exit": (60, 93), "wait4": (61, 260), "uname": (63, 160), "getcwd": (79, 17),
    "chdir": (80, 49), "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "arch_prctl": (158, None), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96), "fadvise64": (221, 223),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "openat": (257, 56), "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59),
    "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439),
}  # fmt: skip
"""Name -> number on x86_64 and on aarch64 (the kernel's asm/unistd_64.h and asm-generic/unistd.h)."""

SOME_ARGUMENTS: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "prlimit64": ((302, 261), 0, (0,)),  # its own limits: another process's could be lowered until it dies
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # not F_SETOWN, which has the kernel send signals to others
    "ioctl": (
        (16, 29),
        1,
        (0x5401, 0x5413, 0x5421, 0x5450, 0x5451),
    ),  # terminal or not, blocking, close-on-exec
}
"""Name -> numbers, which argument is looked at, and the values that it may have."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""`platform.machine()` -> column of the numbers, and the kernel's AUDIT_ARCH (linux/audit.h)."""

LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, RET|K
ALLOW, KILL, NOT_THERE = 0x7FFF0000, 0x80000000, 0x00050000 | 38  # linux/seccomp.h; 38 is ENOSYS
NUMBER_AT, MACHINE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data, little-endian


def make_filter(machine: str) -> bytes:
    """An array of struct sock_filter. Raises KeyError on a machine whose numbers are not known."""
    column, audit_arch = MACHINES[machine]
    code = [instruction(LOAD, MACHINE_AT), instruction(IF_EQUAL, audit_arch, 1, 0), instruction(RETURN, KILL)]
    code.append(instruction(LOAD, NUMBER_AT))
    for numbers in SYSTEM_CALLS.values():
        number = numbers[column]
        if number is not None:
            code += [instruction(IF_EQUAL, number, 0, 1), instruction(RETURN, ALLOW)]
    for numbers, argument, values in SOME_ARGUMENTS.values():
        inner = [instruction(LOAD, ARGUMENTS_AT + 8 * argument)]
        for value in values:
            inner += [instruction(IF_EQUAL, value, 0, 1), instruction(RETURN, ALLOW)]
        inner.append(instruction(RETURN, NOT_THERE))
        code += [instruction(IF_EQUAL, numbers[column], 0, len(inner)), *inner]
    return b"".join([*code, instruction(RETURN, NOT_THERE)])


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
