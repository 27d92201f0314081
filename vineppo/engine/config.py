"""The knobs of the engines. Without torch, so that a recipe is read at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vineppo.config import Named

KernelName = Literal["triton", "native", "torch"]


class TorchEngineConfig(Named):
    name: str = "torch"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where it is faster than float32 (GPUs, CPUs with AVX512-BF16 or AMX)."""
    kernels: Literal["auto", KernelName] = "auto"
    """What is between matrix products. native: in C++ for CPUs, compiled on first use. triton: on CUDA, in
    CUDA graphs. auto: these where they work, else PyTorch's."""
    max_batch: int = Field(default=256, ge=1)
    """Continuations decoded at once. On CPU nothing is gained beyond about 128 for a 135M model."""
    max_kv_tokens: int | None = Field(default=None, ge=2)
    """Bound on tokens whose keys and values are in memory, in use and kept; by default from the free memory."""


class HFEngineConfig(Named):
    name: str = "hf"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where it is faster than float32 (GPUs, CPUs with AVX512-BF16 or AMX)."""
    max_batch: int = Field(default=64, ge=1)
    """Rows per call of generate; memory grows with it."""


class VLLMEngineConfig(Named):
    name: str = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where it is faster than float32 (GPUs, CPUs with AVX512-BF16 or AMX)."""
    max_batch: int = Field(default=256, ge=1)
    """Continuations decoded at once (vLLM's max_num_seqs)."""
    max_context: int | None = Field(default=None, ge=2)
    """Longest sequence, prompt included; by default the model's context. Keys and values of one must fit in memory."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, lt=1)
    """Share of each GPU's memory that vLLM holds, from start to end; the learner needs the rest. Unused on CPU."""
    kv_cache_gb: float | None = Field(default=None, gt=0)
    """GiB for keys and values. By default what gpu_memory_utilization leaves, and on CPU 40 % of the free memory."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    enforce_eager: bool | None = None
    """Without compilation and CUDA graphs: starts sooner, decodes slower. By default only on CPU."""
