"""What the machine is and how to use it: allocator, device, precision, memory, and the record of all that."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vineppo.machine import terminal
from vineppo.machine.threads import fair_threads, waiting
from vineppo.types import UserError

if TYPE_CHECKING:
    import torch

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def prepare() -> None:
    """Once in a process, before torch allocates: an allocator that keeps pages, no more threads than there are cores to
    run on, and libraries that speak harmlessly."""
    import torch
    from transformers.utils import logging as transformers_logging

    tune_allocator()
    if torch.get_num_threads() > fair_threads():  # torch does not know of control groups
        torch.set_num_threads(fair_threads())
    terminal.tame(logging.getLogger("transformers"), logging.getLogger("huggingface_hub"))
    transformers_logging.disable_progress_bar()  # of loading and saving weights


def tune_allocator() -> bool:
    """Makes glibc keep freed memory, which CPU training otherwise spends up to half its time faulting back in.

    By default every large tensor is mapped and unmapped. Returns whether it worked; on other C libraries nothing
    changes. Call it before torch allocates.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 1 << 28)])


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError('device = "cuda": no CUDA device is available; use --device cpu or device = "auto"')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones: GPUs, and CPUs with AVX512-BF16 or AMX.

    Elsewhere torch emulates them; on a Zen 3 core they are about 8 times slower than fp32.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = cpu_info().get("flags", "")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def pick_dtype(name: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    import torch

    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    return getattr(torch, name)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpu_info().get("model name") or platform.processor() or platform.machine()


def cpu_info() -> dict[str, str]:
    """What Linux says of the first core; nothing on other systems."""
    try:
        first, *_ = Path("/proc/cpuinfo").read_text().split("\n\n")
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def commit() -> str | None:
    """Of the source checkout this package runs from, "-dirty" if it has changes; None if it is no checkout."""
    here = Path(__file__).parent.parent
    if not (here.parent / ".git").exists():  # installed, perhaps inside of somebody else's repository
        return None
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return found or None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """For environment.json: enough to say what a number was measured on."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "device": f"{device.type}: {device_name(device)}",
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "waiting": waiting(),
        "commit": commit(),
    }
