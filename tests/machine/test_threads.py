"""What OpenMP is told of waiting, and how many threads there are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vineppo.machine import threads

NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", *threads.SPIN)


def run_showing_openmp(*arguments: str, **environ: str) -> str:
    """What OpenMP, as it is loaded, says it was told; by every process that loads it."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    return subprocess.run(
        [sys.executable, *arguments],
        env=kept | {"OMP_DISPLAY_ENV": "verbose"} | environ,
        capture_output=True,
        text=True,
    ).stderr


def spins(output: str) -> list[int]:
    return [int(turns) for turns in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", output)]


MAPS = Path("/proc/self/maps")  # torch is loaded, by conftest.py
needs_libgomp = pytest.mark.skipif(
    not MAPS.exists() or "libgomp" not in MAPS.read_text(), reason="PyTorch has another OpenMP than GCC's here"
)


@needs_libgomp
def test_importing_vineppo_is_enough_and_the_users_word_holds():
    code = ("-c", "import vineppo, torch")
    assert spins(run_showing_openmp(*code)) == [1000]
    assert spins(run_showing_openmp(*code, GOMP_SPINCOUNT="77")) == [77]
    passive = run_showing_openmp(*code, OMP_WAIT_POLICY="passive")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in passive
    assert spins(passive) == [0]


@needs_libgomp
def test_the_processes_of_a_comparison_wait_alike(tmp_path):
    recipe = "recipes/compare/grpo.toml"
    output = run_showing_openmp(
        "-m", "vineppo.cli", "compare", recipe, "model.name=no/such/folder", "--out", str(tmp_path / "out")
    )
    assert spins(output) == [1000]  # the server that runs are forked from; the command itself loads no torch
    assert "runs failed" in output


def test_no_command_loads_torch_before_openmp_is_told():
    code = "import vineppo.cli, os, sys; assert 'torch' not in sys.modules; print(os.environ['KMP_BLOCKTIME'])"
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    assert subprocess.check_output([sys.executable, "-c", code], env=kept, text=True).split() == ["1"]


def test_cores_are_shared_out_unless_the_user_has_said_how_many(monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    for variable, of_one, of_three in [
        (None, 8, 2),
        ("5", 5, 5),
        ("4,2", 4, 4),
        ("", 8, 2),
        ("0", 8, 2),
        ("many", 8, 2),
    ]:
        if variable is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", variable)
        assert (threads.fair_threads(), threads.fair_threads(3)) == (of_one, of_three), variable
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.fair_threads(100) == 1
