"""Programs that mean harm. Each says how far it came, and each harm would show: to the program, or to us outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vineppo.sandbox import Limits, Sandbox

TRY = """
import os
def attempt(what, *arguments, **keywords):
    try:
        found = what(*arguments, **keywords)
    except BaseException as error:
        return
    print("HARM", getattr(what, "__name__", what), arguments, str(found)[:80], flush=True)
"""


def harms(sandbox: Sandbox, program: str) -> list[str]:
    """What the program could do; it must have come to its end."""
    finished = sandbox.run(f"{TRY}\n{program}\nprint('THE END')")
    *lines, last = finished.stdout.splitlines() or [""]
    assert last == "THE END", finished
    return lines


def test_an_attempt_that_succeeds_is_seen(sandbox):
    """The campaign's own measure."""
    assert harms(sandbox, "attempt(os.getpid)\nattempt(int, 'x')")[0].startswith("HARM getpid")


def test_no_process_and_no_thread_is_made(sandbox):
    assert not harms(
        sandbox,
        "import subprocess, threading, sys, ctypes\n"
        "for again in range(100):\n"
        "    attempt(os.fork)\n"
        "    attempt(os.forkpty)\n"
        "    attempt(threading.Thread(target=print, args=['HARM']).start)\n"
        "attempt(subprocess.run, [sys.executable, '-c', 'print(1)'])\n"
        "attempt(os.posix_spawn, sys.executable, [sys.executable], {})\n"
        "attempt(os.system, 'true') if os.system('true') == 0 else None\n"
        "libc = ctypes.CDLL(None)\n"
        "for number in (56, 57, 58, 220, 435):\n"  # clone, fork, vfork; clone on aarch64; clone3
        "    if libc.syscall(number, 17, 0, 0, 0, 0) > 0: print('HARM', number)\n",
    )


@pytest.mark.parametrize(
    "bomb",
    [
        "bytearray(1 << 30)",
        "[0] * (1 << 28)",
        "'x' * (1 << 30)",
        "__import__('mmap').mmap(-1, 1 << 30)",
        "list(iter(lambda: bytearray(1 << 20), None))",
        "os.memfd_create('m')",
        "os.open('/dev/shm/m', os.O_CREAT | os.O_RDWR)",
        "__import__('multiprocessing.shared_memory').shared_memory.SharedMemory(create=True, size=1 << 30)",
        "[os.pipe() for _ in range(100)]",
        "1 << (1 << 40)",
    ],
)
def test_memory_is_limited(sandbox, bomb):
    assert not harms(sandbox, f"attempt(lambda: {bomb})")


def test_memory_that_is_not_counted_is_not_there(sandbox):
    """System V's and POSIX's shared memory, which outlives a process."""
    assert not harms(
        sandbox,
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "for call in (29, 194):\n"  # shmget
        "    if libc.syscall(call, 0, 1 << 30, 0o1600) >= 0: print('HARM', call)\n"
        "if libc.syscall(319, b'm', 0) >= 0: print('HARM memfd_create')\n",
    )


def test_nothing_can_be_written(sandbox, tmp_path):
    here = tmp_path / "file"
    here.write_text("as it was")
    assert not harms(
        sandbox,
        "places = ['/', '/tmp', '/var/tmp', '/dev/shm', '/empty', '/proc/self', '/root', os.getcwd(), "
        f"{str(tmp_path)!r}, os.path.dirname(os.__file__), '/usr/lib']\n"
        "for folder, _, _ in os.walk('/usr/lib/python3'): places.append(folder)\n"
        "for place in places:\n"
        "    attempt(open, os.path.join(place, 'new'), 'w')\n"
        "    attempt(os.mkdir, os.path.join(place, 'folder'))\n"
        "    attempt(os.mkfifo, os.path.join(place, 'pipe'))\n"
        "    attempt(os.open, place, os.O_TMPFILE | os.O_RDWR)\n"
        f"for mode in 'w', 'a', 'r+': attempt(open, {str(here)!r}, mode)\n"
        f"for what in os.unlink, os.rmdir, os.listdir: attempt(what, {str(here)!r})\n"
        f"attempt(os.truncate, {str(here)!r}, 0)\n"
        f"attempt(os.open, {str(here)!r}, os.O_RDONLY | os.O_TRUNC)\n"
        f"attempt(os.chmod, {str(here)!r}, 0)\n"
        f"attempt(os.rename, {str(here)!r}, {str(tmp_path / 'other')!r})\n"
        "attempt(os.chmod, os.__file__, 0o777)\n"
        "attempt(open, os.__file__, 'a')\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert here.read_text() == "as it was"


def test_no_link_leads_out(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the expected value")
    link = tmp_path / "link"
    link.symlink_to(secret)
    assert not harms(
        sandbox,
        f"for path in {str(secret)!r}, {str(link)!r}, '/proc/self/root' + {str(secret)!r}:\n"
        "    attempt(open, path)\n"
        "for make in os.symlink, os.link:\n"
        f"    attempt(make, {str(secret)!r}, 'mine')\n"
        f"    attempt(make, {str(secret)!r}, {str(tmp_path / 'mine')!r})\n"
        "for up in '..', '../..', '../../..', '/..', '/proc/1/root', '/proc/self/cwd/..':\n"
        f"    attempt(open, up + {str(secret)!r})\n"
        "for fd in range(100):\n"
        f"    attempt(os.open, {str(secret).lstrip('/')!r}, os.O_RDONLY, dir_fd=fd)\n"
        "attempt(os.chroot, '/')\n",
    )


def test_nothing_of_the_users_can_be_read(sandbox, monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2")
    repository, pid = Path(__file__).parents[2], os.getpid()
    assert not harms(
        sandbox,
        f"for path in {str(Path(__file__))!r}, {str(repository / 'pyproject.toml')!r}, '/etc/passwd', '/etc/shadow', "
        f"'/proc/{pid}/environ', '/proc/{pid}/mem', '/proc/{pid}/maps', '/proc/{pid}/cmdline', '/proc/{pid}/fd/0':\n"
        "    attempt(open, path, 'rb')\n"
        f"for fd in range(64): attempt(open, f'/proc/{pid}/fd/{{fd}}', 'rb')\n"
        f"for path in {str(Path.home())!r}, {str(repository)!r}, '/proc/{pid}/fd', '/home', '/etc', '/proc':\n"
        "    names = []\n"
        "    try: names = os.listdir(path)\n"
        "    except OSError: pass\n"
        # bubblewrap makes the folders above the interpreter's, empty but for it
        "    if len(names) > 1: print('HARM', path, names[:9])\n"
        "attempt(dict(os.environ).__getitem__, 'A_SECRET')\n"
        "import ctypes\n"
        "if ctypes.CDLL(None).getenv(b'A_SECRET'): print('HARM getenv')\n"
        "attempt(lambda: open('/proc/self/environ').read().index('hunter2'))\n",
    )


def test_no_file_of_ours_is_left_open(sandbox):
    """Nor the filter's pipe."""
    with open(__file__):
        assert not harms(
            sandbox,
            "for fd in range(3, 1024): attempt(os.fstat, fd)\n"
            "import stat\n"
            "for fd in range(3):\n"
            "    if not stat.S_ISFIFO(os.fstat(fd).st_mode): print('HARM', fd)\n",
        )


def test_no_socket_leads_anywhere(sandbox):
    called = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = threading.Thread(target=lambda: called.append(server.accept()), daemon=True)
        listener.start()
        port = server.getsockname()[1]
        assert not harms(
            sandbox,
            "import socket\n"
            "for family in socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK:\n"
            "    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW:\n"
            "        attempt(socket.socket, family, kind)\n"
            "attempt(socket.socketpair)\n"
            f"attempt(socket.create_connection, ('127.0.0.1', {port}), 2)\n"
            "attempt(socket.getaddrinfo, 'localhost', 80)\n"
            "import urllib.request\n"
            f"attempt(urllib.request.urlopen, 'http://127.0.0.1:{port}', timeout=2)\n",
        )
        assert not called


def test_no_signal_reaches_anybody(sandbox):
    """By any of the ways that the kernel has: a process beside us, whose number it is told, lives on."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as victim:
        try:
            harms(
                sandbox,
                "import signal, resource, fcntl, ctypes, array\nlibc = ctypes.CDLL(None)\n"
                f"for pid in {victim.pid}, os.getppid(), {os.getpid()}, -1:\n"
                "    attempt(os.kill, pid, signal.SIGKILL)\n"
                "    attempt(os.killpg, abs(pid), signal.SIGKILL)\n"
                "    attempt(resource.prlimit, pid, resource.RLIMIT_CPU, (0, 0))\n"
                "    attempt(os.setpriority, os.PRIO_PROCESS, pid, 19)\n"
                "    attempt(os.sched_setaffinity, pid, [0])\n"
                "    libc.syscall(200, pid, 9), libc.syscall(234, pid, pid, 9)\n"  # tkill, tgkill
                "    libc.syscall(129, pid, 9, b'\\0' * 128)\n"  # rt_sigqueueinfo
                "    libc.syscall(101, 16, pid, 0, 0)\n"  # ptrace
                "    reader, writer = os.pipe()\n"
                "    attempt(fcntl.fcntl, reader, 8, pid)\n"  # F_SETOWN, F_SETSIG: the kernel sends it
                "    attempt(fcntl.fcntl, reader, 10, 9)\n"
                "    attempt(fcntl.ioctl, reader, 0x8901, array.array('i', [pid]))\n"
                "    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)\n"
                "    os.write(writer, b'x')\n"
                "    os.close(reader), os.close(writer)\n",
            )
            assert victim.poll() is None
        finally:
            victim.kill()


def test_limits_cannot_be_raised(sandbox):
    assert not harms(
        sandbox,
        "import resource\n"
        "for name in dir(resource):\n"
        "    if name.startswith('RLIMIT_'):\n"
        "        kind = getattr(resource, name)\n"
        "        soft, hard = resource.getrlimit(kind)\n"
        "        if hard != resource.RLIM_INFINITY: attempt(resource.setrlimit, kind, (hard + 1, hard + 1))\n"
        "        attempt(resource.prlimit, os.getppid(), kind, (0, 0))\n",
    )


def test_no_privilege_can_be_had(sandbox):
    assert not harms(
        sandbox,
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "for call in os.setuid, os.setgid, os.seteuid: attempt(call, 0)\n"
        "attempt(os.setsid)\n"
        "attempt(os.unshare, 0x10000000) if hasattr(os, 'unshare') else None\n"
        "for number in (272, 165, 155, 161, 308, 321, 425, 246, 175, 298, 310, 248):\n"
        # unshare, mount, pivot_root, chroot, setns, bpf, io_uring_setup, kexec_load, init_module, perf_event_open,
        # process_vm_readv, add_key
        "    if libc.syscall(number, 0, 0, 0, 0, 0, 0) >= 0: print('HARM', number)\n",
    )


def descendants(pid: int) -> set[int]:
    """Processes below one that live, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found = {pid} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def all_gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(descendants(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(descendants(pid) for pid in pids)


SLEEPER = (
    "import signal, time\nfor n in 1, 2, 15: signal.signal(n, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
)


def test_what_is_ended_is_ended_as_a_tree(sandbox):
    with sandbox.start(SLEEPER) as process:
        assert process.read_line() == "up"
        tree = descendants(process._process.pid)
        assert tree
    assert all_gone(tree)


def test_it_dies_with_its_parent(sandbox):
    """A grading worker that is killed takes its program along."""
    parent = (
        "import sys, time\nfrom vineppo.sandbox import Limits, Sandbox\n"
        f"with Sandbox({sandbox.backend!r}, Limits(timeout_s=600.0)).start({SLEEPER!r}) as process:\n"
        "    print(process.read_line(), flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == "up\n"
        tree = descendants(worker.pid) - {worker.pid}
        assert tree
        worker.send_signal(signal.SIGKILL)
    assert all_gone(tree)


def test_a_program_that_floods_or_hangs_costs_its_limit_alone(sandbox):
    """Closed ends, unread input, endless lines without a break: all come to an end."""
    quick = replace(sandbox, limits=Limits(timeout_s=1.0, output_kb=4))
    for program in (
        "import os, time\nos.close(0)\ntime.sleep(600)",
        "import os, time\nos.close(1)\nwhile True: time.sleep(600)",
        "while True: print('x', end='')",
        "import sys\nwhile True: sys.stderr.write('x' * 4096)",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import os\nos.execv('/proc/self/exe', ['x'])",
    ):
        finished = quick.run(program, stdin="y" * 1_000_000)
        assert not finished.succeeded
        assert len(finished.stdout) <= 4 << 10
