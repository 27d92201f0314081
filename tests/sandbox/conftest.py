"""Every law and every attack is tried under each backend that works on this machine."""

from __future__ import annotations

import pytest

from vineppo.sandbox import Limits, Sandbox

LIMITS = Limits(cpu_s=1, timeout_s=20.0, memory_mb=128, output_kb=8)


@pytest.fixture(params=["bwrap", "landlock"])
def sandbox(request) -> Sandbox:
    made = Sandbox(request.param, LIMITS)
    if not made.works():
        pytest.skip(f"{request.param} does not work here")
    return made
