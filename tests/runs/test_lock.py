"""One process at a time writes into a run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from small_runs import LONG, contents, run

from vineppo.runs.lock import LOCK, lock_folder
from vineppo.types import UserError


def test_a_second_process_is_refused_and_told_who_holds_it(stopped):
    before = contents(stopped)
    holder = f"in use by another process .pid {os.getpid()}"
    with lock_folder(stopped, pytest.fail), pytest.raises(UserError, match=holder):
        run(LONG, stopped, resume=True)
    assert contents(stopped) == before


def test_a_killed_holder_holds_nothing(tmp_path):
    code = "import sys; from pathlib import Path; from vineppo.runs.lock import lock_folder\n"
    code += "with lock_folder(Path(sys.argv[1]), print): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=str(holder.pid)), lock_folder(tmp_path, pytest.fail):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with lock_folder(tmp_path, pytest.fail):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []
