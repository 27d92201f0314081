import json
import platform
import subprocess
import sys

import pytest
import torch

from vineppo.machine import runtime, threads
from vineppo.machine.limits import peak_memory_mb
from vineppo.types import UserError

CPU = torch.device("cpu")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is what is tuned")
def test_freed_memory_is_kept_by_the_tuned_allocator_alone():
    """Page faults of 20 tensors of 64 MB, each made after the last one is freed; a process for each of the two ways."""
    code = (
        "import resource, sys, torch; from vineppo.machine import runtime\n"
        "if sys.argv[1] == 'tuned': runtime.prepare(); assert runtime.tune_allocator()\n"
        "count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(1 << 24); before = count()\n"
        "for _ in range(20): torch.ones(1 << 24)\n"
        "print(count() - before)"
    )
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("tuned", "default")
    }
    assert faults["tuned"] < faults["default"] / 10, faults


def test_devices_and_precisions():
    assert runtime.pick_device("cpu") == CPU
    assert runtime.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.pick_dtype("float32", CPU) == torch.float32
    assert runtime.pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert runtime.pick_dtype("auto", CPU) == (torch.bfloat16 if runtime.has_fast_bf16(CPU) else torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_asked_for_and_absent_is_the_users_error():
    with pytest.raises(UserError, match="no CUDA device"):
        runtime.pick_device("cuda")


def test_no_more_threads_than_a_control_group_lets_run(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 2)
    try:
        for num_threads, expected in [(3, 2), (2, 2), (1, 1)]:
            torch.set_num_threads(num_threads)
            runtime.prepare()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_peak_memory_counts_what_was_touched():
    before = peak_memory_mb()
    size_mb = int(before) + 200
    del_me = bytearray(size_mb << 20)
    assert peak_memory_mb() > before + 150
    del del_me


def test_a_machine_is_described_by_what_a_number_was_measured_on():
    machine = runtime.describe_machine(CPU)
    assert json.loads(json.dumps(machine)) == machine
    assert machine["torch"] == torch.__version__
    assert machine["device"].startswith("cpu: ")
    assert machine["num_threads"] >= 1
