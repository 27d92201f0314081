"""What a forward pass does between matrix products: in PyTorch here, C++ in native.py, Triton in triton.py.

N tokens, J heads, D head size, E hidden size, F ffn size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from transformers.activations import ACT2FN

from vineppo.engine.llama.attention import Attend, DecodeAttention, DecodeBatch


class Kernels(Protocol):
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Over the last dimension."""
        ...

    def rotate(self, x_NJD: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor) -> torch.Tensor:
        """Rotary positions; cosines and sines are of half the head size. May change x in place."""
        ...

    def gated(self, gate_up_NF: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(gate) * up, of the two halves; the activation by transformers' name."""
        ...

    def decode_attention(self, batch: DecodeBatch) -> Attend: ...


class TorchKernels:
    """Any device and dtype."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """In float32, rounded before the weight as in transformers; on CPU F.rms_norm takes twice as long."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (norm.square() / x.shape[-1] + eps).rsqrt()
        return (x * inverse).to(x.dtype).mul_(weight)

    def rotate(self, x_NJD: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor) -> torch.Tensor:
        left, right = x_NJD.chunk(2, dim=-1)
        return torch.cat((left * cos_N1D - right * sin_N1D, right * cos_N1D + left * sin_N1D), dim=-1)

    def gated(self, gate_up_NF: torch.Tensor, activation: str) -> torch.Tensor:
        gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
        return ACT2FN[activation](gate_NF).mul_(up_NF)

    def decode_attention(self, batch: DecodeBatch) -> Attend:
        return DecodeAttention(batch)


def check_heads(dtype: torch.dtype, *tensors_NJD: torch.Tensor) -> None:
    """For kernels that take pointers: rows may lie apart, but not the heads of a row."""
    for tensor in tensors_NJD:
        assert tensor.dtype == dtype
        assert tensor.stride()[1:] == (tensor.shape[2], 1)
