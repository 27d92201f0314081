"""The kernels in C++ (native.cpp), compiled with the machine's own compiler on first use and called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from vineppo.engine.llama.attention import Attend, DecodeBatch
from vineppo.engine.llama.kernels.kernel_cache import cache_folder, find_kept, keep
from vineppo.engine.llama.kernels.plain import TorchKernels, check_heads
from vineppo.machine.runtime import cpu_info

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("g++", "c++", "clang++")
# -ffast-math lets the compiler sum in vectors and call vector exp. The linker must not see it: it would add code that
# makes the whole process flush denormal numbers to 0.
COMPILE = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c")
LINK = ("-shared", "-fopenmp")


NUMBERS = {torch.float32: "float", torch.bfloat16: "bf16"}  # as native.cpp calls them


class Batch(ctypes.Structure):
    """As in native.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("order_N", "trunk_slots_N", "prefix_lengths_N", "own_lengths_B")),
        *((name, ctypes.c_int64) for name in ("N", "B", "K", "D", "trunk_room", "own_room")),
        ("scale", ctypes.c_float),
    ]


class NativeKernels(TorchKernels):
    """float32 and bfloat16 on CPU; plain.py says what each does. What is not written in C++ is TorchKernels'."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.library = dtype, load_library(NUMBERS[dtype])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x = x.contiguous()
        out, width = torch.empty_like(x), x.shape[-1]
        self.check(out, x, weight)
        assert weight.shape == (width,)
        shape = sizes(x.numel() // width, width)
        self.library.rms_norm(*pointers(out, x, weight), *shape, ctypes.c_float(eps), num_threads())
        return out

    def rotate(self, x_NJD: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor) -> torch.Tensor:
        N, J, D = x_NJD.shape
        assert cos_N1D.shape == sin_N1D.shape == (N, 1, D // 2)
        self.check(cos_N1D, sin_N1D)
        check_heads(self.dtype, x_NJD)
        x, cos, sin = pointers(x_NJD, cos_N1D, sin_N1D)
        self.library.rotate(x, *sizes(x_NJD.stride(0)), cos, sin, *sizes(N, J, D), num_threads())
        return x_NJD

    def gated(self, gate_up_NF: torch.Tensor, activation: str) -> torch.Tensor:
        if activation != "silu":
            return super().gated(gate_up_NF, activation)
        N, width = gate_up_NF.shape
        out_NF = gate_up_NF.new_empty(N, width // 2)
        self.check(out_NF, gate_up_NF)
        self.library.swiglu(*pointers(out_NF, gate_up_NF), *sizes(N, width // 2), num_threads())
        return out_NF

    def decode_attention(self, batch: DecodeBatch) -> Attend:
        trunk_kv, own_kv = batch.trunk_kv, batch.own_kv
        slots_N, lengths_N, own_B = batch.arrays()
        num_heads, trunk_room, head_dim = trunk_kv.kv.shape[3:]
        own_room = own_kv.length
        assert own_kv.kv.shape[3] == num_heads
        assert own_kv.kv.shape[5] == head_dim
        assert len(lengths_N) == len(slots_N) >= len(own_B)
        assert within(slots_N, 0, trunk_kv.kv.shape[2])
        assert within(lengths_N, 1, trunk_room + 1)
        assert within(own_B, 0, own_room)
        assert len(own_B) <= own_kv.kv.shape[2]
        arrays = (np.argsort(slots_N, kind="stable"), slots_N, lengths_N, own_B)  # alive as long as attend is
        counts = (len(slots_N), len(own_B), num_heads, head_dim, trunk_room, own_room)
        context = Batch(*(array.ctypes.data for array in arrays), *counts, batch.scale)

        def attend(layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
            N, H, D = q_NHD.shape
            assert k_NKD.shape == v_NKD.shape == (N, num_heads, head_dim)
            assert len(arrays[0]) == N
            assert head_dim == D
            assert H % num_heads == 0
            check_heads(self.dtype, q_NHD, k_NKD, v_NKD)
            out_NHD = q_NHD.new_empty(N, H, D)
            caches = (trunk_kv.keys(layer), trunk_kv.values(layer), own_kv.keys(layer), own_kv.values(layer))
            self.check(out_NHD, *caches)
            self.library.attend(
                *pointers(out_NHD, q_NHD, k_NKD, v_NKD),
                *sizes(q_NHD.stride(0), k_NKD.stride(0), v_NKD.stride(0), H),
                *pointers(*caches),
                ctypes.byref(context),
                num_threads(),
            )
            return out_NHD

        return attend

    def check(self, *tensors: torch.Tensor) -> None:
        """C++ takes them at their word."""
        for tensor in tensors:
            assert tensor.dtype == self.dtype
            assert tensor.is_contiguous()


def why_not_native(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels cannot be used, or None where they can."""
    if device.type != "cpu":
        return f"they run on CPU, not on {device.type}"
    if dtype not in NUMBERS:
        return f"they know float32 and bfloat16, not {dtype}"
    try:
        load_library(NUMBERS[dtype])
    except OSError as error:
        return str(error)
    return None


@lru_cache
def load_library(number: str) -> ctypes.CDLL:
    """Compiles what is not compiled yet for this source, compiler and CPU. OSError says why it cannot."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise OSError(f"no C++ compiler is found ({', '.join(COMPILERS)})")
    # What -march=native depends on is in it too: a home folder may be shared by different machines.
    cpu = cpu_info()
    flags = cpu.get("flags") or cpu.get("Features") or platform.processor()
    ingredients = (SOURCE.read_text(), number, compiler, *COMPILE, *LINK, platform.machine(), flags, torch.__version__)
    name = f"native-{hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]}"
    with suppress(OSError):  # without a folder to keep it in, or from a folder that nothing is loaded from
        if kept := find_kept(cache_folder(), name):
            return ctypes.CDLL(str(kept))
    with TemporaryDirectory(prefix="vineppo-") as build:
        unit, library = Path(build) / "native.o", Path(build) / "native.so"
        run_compiler(compiler, *COMPILE, f"-DNUMBER={number}", "-o", unit, SOURCE)
        run_compiler(compiler, *LINK, "-o", library, unit, "-lm")
        with suppress(OSError):
            return ctypes.CDLL(str(keep(cache_folder(), name, library.read_bytes())))
        return ctypes.CDLL(str(library))


def why_not_kept() -> str | None:
    """Why the kernels are compiled at every start, or None where they are kept."""
    try:
        folder = cache_folder()
    except OSError as error:
        return str(error)
    return None if os.access(folder, os.W_OK) else f"{folder} cannot be written"


def run_compiler(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {(done.stderr.strip() or 'without a word').splitlines()[0]}")


def within(numbers: np.ndarray, low: int, high: int) -> bool:
    return not len(numbers) or (numbers.min() >= low and numbers.max() < high)


def pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def sizes(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]


def num_threads() -> ctypes.c_int64:
    """As many as PyTorch's, which may change at any time."""
    return ctypes.c_int64(torch.get_num_threads())
