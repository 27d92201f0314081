"""Which kernels run on this machine, and why not the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal

import torch

from vineppo.engine.config import KernelName
from vineppo.engine.llama.attention import DecodeBatch
from vineppo.engine.llama.kernels.native import NativeKernels, why_not_native
from vineppo.engine.llama.kernels.plain import Kernels, TorchKernels
from vineppo.engine.llama.model import Llama
from vineppo.types import UserError

Decode = Callable[[Sequence[int], Sequence[int], DecodeBatch], torch.Tensor]
"""(tokens_N, positions_N, batch) -> logits_NV; stores the tokens' keys and values."""


def pick_kernels(name: KernelName | Literal["auto"], dtype: torch.dtype, device: torch.device) -> KernelName:
    """Those asked for, or UserError; for "auto" the fastest that work."""
    if name == "auto":
        return best_kernels(dtype, device)[0]
    if reason := why_not(name, dtype, device):
        raise UserError(f'engine.kernels = "{name}": {reason}; "auto" takes others where these do not work')
    return name


def best_kernels(dtype: torch.dtype, device: torch.device) -> tuple[KernelName, str | None]:
    """Their name, and why not faster ones."""
    faster: KernelName = "triton" if device.type == "cuda" else "native"
    reason = why_not(faster, dtype, device)
    return ("torch", reason) if reason else (faster, None)


def why_not(name: KernelName, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why these kernels cannot be used, or None where they can."""
    if name == "triton":
        return why_not_triton(device)
    return why_not_native(dtype, device) if name == "native" else None


def why_not_triton(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed; PyTorch for CUDA brings it on Linux"
    if device.type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else f"they run on CUDA GPUs, not on {device.type}"
    if torch.version.cuda and (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return "Triton wants compute capability 8.0 or more; this GPU has {}.{}".format(*capability)
    try:
        import triton

        triton.runtime.driver.active.get_current_target()  # compiles its launcher, with a C compiler and Python.h
    except Exception as error:
        return f"Triton does not start: {error}"
    return None


def make_kernels(name: KernelName, dtype: torch.dtype) -> Kernels:
    if name == "triton":
        from vineppo.engine.llama.kernels.triton import TritonKernels  # not everybody has Triton

        return TritonKernels()
    return NativeKernels(dtype) if name == "native" else TorchKernels()


def make_decode(name: KernelName, model: Llama) -> Decode:
    """How rows get one token each: any number of them at a time, or in the fixed sizes that CUDA graphs need."""
    if name == "triton":
        from vineppo.engine.llama.kernels.graphs import FixedSizeSteps

        return FixedSizeSteps(model)

    def decode(tokens_N: Sequence[int], positions_N: Sequence[int], batch: DecodeBatch) -> torch.Tensor:
        attend = model.kernels.decode_attention(batch)
        return model.logits(model.hidden(model.ints(tokens_N), model.ints(positions_N), attend))

    return decode
