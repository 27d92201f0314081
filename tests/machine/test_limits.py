"""What a container may use, read from files laid out as Linux lays them out."""

import os
from pathlib import Path

import pytest

from vineppo.machine.limits import available_cores, available_memory_bytes, cpu_limits, memory_limits

UNLIMITED_V1 = "9223372036854771712"


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def limits(root: Path) -> tuple[float | None, int | None]:
    return min(cpu_limits(root), default=None), min(memory_limits(root), default=None)


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        ("0::/", {"cpu.max": "150000 100000", "memory.max": "1000"}, 1.5, 1000),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max", "memory.high": "max"}, None, None),
        # every group on the way up counts
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000", "cpu.max": "max 100000"}, 0.5, None),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "70", "a/memory.high": "60", "b/memory.max": "1"},
         None, 60),
        # the path is the host's, the files are the container's
        ("0::/docker/0123", {"cpu.max": "200000 100000", "memory.max": "5"}, 2.0, 5),
        ("0::/../../other", {"cpu.max": "100000 100000"}, 1.0, None),
        # version 1, with cpu and cpuacct in one tree
        ("4:memory:/x\n2:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000",
         "cpu,cpuacct/x/cpu.cfs_period_us": "100000", "memory/x/memory.limit_in_bytes": "9"}, 2.5, 9),
        ("4:memory:/\n1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000",
         "memory/memory.limit_in_bytes": UNLIMITED_V1}, None, int(UNLIMITED_V1)),
        ("1:cpuset:/\n3:cpuacct:/", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, None, None),
        # both versions at once
        ("4:memory:/x\n0::/y", {"memory/x/memory.limit_in_bytes": "8", "unified/y/memory.max": "7",
         "unified/y/cpu.max": "300000 100000"}, 3.0, 7),
        # nonsense limits nothing
        ("0::/", {"cpu.max": "0 0", "memory.max": "-3"}, None, None),
        ("what\n::::\n", {"cpu.max": "lots", "memory.max": ""}, None, None),
    ],
)  # fmt: skip
def test_the_tightest_group_on_the_way_up_decides(tmp_path, groups, files, cores, memory):
    assert limits(machine(tmp_path, groups, files)) == (cores, memory)


def test_without_groups_the_machine_is_the_limit(tmp_path):
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert available_cores(tmp_path) == allowed
    assert available_memory_bytes(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("quota", "cores"), [("10000 100000", 1), ("199999 100000", 1), ("100000000 100000", None)])
def test_cores_are_whole_at_least_one_and_never_more_than_there_are(tmp_path, quota, cores):
    available = available_cores(machine(tmp_path, "0::/", {"cpu.max": quota}))
    assert available == (cores or available_cores(tmp_path / "nothing"))


def test_a_group_gives_no_more_memory_than_there_is(tmp_path):
    root = machine(tmp_path, "4:memory:/", {"memory/memory.limit_in_bytes": UNLIMITED_V1})
    assert available_memory_bytes(root) == available_memory_bytes(tmp_path / "nothing")
    assert available_memory_bytes(machine(tmp_path, "0::/", {"memory.max": str(1 << 20)})) == 1 << 20


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_follow_the_affinity(tmp_path):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_this_machine_has_limits_that_make_sense():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    assert 1 << 26 <= available_memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
