"""The kernels in Triton, for CUDA GPUs; plain.py and attention.py have the same in PyTorch.

What attention has to know of rows lies in one tensor on the device, whose size depends on nothing but the number of
rows; so a recorded CUDA graph can be replayed with other rows, and after memory was laid out anew (graphs.py).

N rows, of which some have own tokens; H = K * G query heads for K key/value heads; D head size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from vineppo.engine.llama.attention import Attend, DecodeBatch
from vineppo.engine.llama.kernels.plain import TorchKernels, check_heads
from vineppo.engine.llama.kv_cache import SlotKV

TILE_ROWS = tl.constexpr(16)  # rows of one trunk whose queries are multiplied with its keys at once
TILE_HEADS = 4  # of the heads that share keys, as many at once
BLOCK_KEYS = tl.constexpr(32)
NUM_STAGES = 2  # of loads ahead; with these sizes float32 fits in the 99 KiB of shared memory that any GPU has
LAYOUT = tl.constexpr(5)  # trunks' slots and room; own tokens' offset (in heads), slots and room


class TritonKernels(TorchKernels):
    """Any dtype; what is not written in Triton is TorchKernels'."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x, width = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        rms_norm_kernel[(x.numel() // width,)](out, x, weight, width, eps, BLOCK=triton.next_power_of_2(width))
        return out

    def rotate(self, x_NJD: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor) -> torch.Tensor:
        N, J, D = x_NJD.shape
        check_heads(x_NJD.dtype, x_NJD)
        block = triton.next_power_of_2(J * (D // 2))
        rotate_kernel[(N,)](x_NJD, x_NJD.stride(0), cos_N1D, sin_N1D, J, D // 2, BLOCK=block)
        return x_NJD

    def gated(self, gate_up_NF: torch.Tensor, activation: str) -> torch.Tensor:
        if activation != "silu":
            return super().gated(gate_up_NF, activation)
        N, width = gate_up_NF.shape
        out_NF = gate_up_NF.new_empty(N, width // 2)
        block = min(triton.next_power_of_2(width // 2), 1024)
        swiglu_kernel[(N, triton.cdiv(width // 2, block))](out_NF, gate_up_NF, width // 2, BLOCK=block)
        return out_NF

    def decode_attention(self, batch: DecodeBatch) -> Attend:
        packed = torch.from_numpy(pack(batch, len(batch.trunk_slots_N))).to(batch.trunk_kv.kv.device)
        return TritonAttention(packed, batch.trunk_kv, batch.scale)


def pack(batch: DecodeBatch, size: int) -> np.ndarray:
    """What attention has to know of a batch, int64 [LAYOUT + 5 * size + 1]; rows from N to size are idle.

    Rows of one trunk stand next to each other in `order`, which is cut into tiles: tile t is order[starts[t]] to
    order[starts[t + 1] - 1]; tiles that are not needed are empty.
    """
    trunk_kv, own_kv = batch.trunk_kv, batch.own_kv
    slots_N, lengths_N, own_B = batch.arrays()
    N = len(slots_N)
    assert size >= N >= len(own_B)
    assert trunk_kv.kv.untyped_storage().data_ptr() == own_kv.kv.untyped_storage().data_ptr()
    order_N = np.argsort(slots_N, kind="stable")
    ranks_N = np.arange(N) - np.searchsorted(slots_N[order_N], slots_N[order_N])
    starts_T = np.flatnonzero(ranks_N % TILE_ROWS.value == 0)
    # A compiler that sees a multiple of D loads several numbers at a time.
    own_offset = (own_kv.kv.storage_offset() - trunk_kv.kv.storage_offset()) // own_kv.kv.shape[5]
    sections = [
        np.array([trunk_kv.kv.shape[2], trunk_kv.length, own_offset, own_kv.kv.shape[2], own_kv.length]),
        fill(starts_T, size + 1, N),
        fill(order_N, size, 0),
        fill(slots_N, size, 0),
        fill(lengths_N, size, 0),
        fill(own_B, size, -1),  # -1: no own tokens
    ]
    return np.concatenate(sections)


def fill(numbers: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(numbers, (0, length - len(numbers)), constant_values=value)


class TritonAttention:
    def __init__(self, packed: torch.Tensor, trunk_kv: SlotKV, scale: float) -> None:
        self.packed, self.kv, self.scale = packed, trunk_kv.kv, scale

    def __call__(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
        check_heads(self.kv.dtype, q_NHD, k_NKD, v_NKD)
        (N, H, D), K = q_NHD.shape, k_NKD.shape[1]
        assert len(self.packed) == LAYOUT.value + 5 * N + 1
        assert self.kv.shape[3] == K
        assert self.kv.shape[5] == D
        out_NHD = torch.empty_like(q_NHD, memory_format=torch.contiguous_format)
        prefix_NHD = torch.empty_like(out_NHD, dtype=torch.float32)
        lse_NH = prefix_NHD.new_empty(N, H)
        sizes: dict[str, Any] = {"K": K, "G": H // K, "D": D, "num_stages": NUM_STAGES}
        sizes["HEAD"] = max(triton.next_power_of_2(D), 16)  # products take 16 and more
        heads = min(triton.next_power_of_2(H // K), TILE_HEADS)
        prefix_kernel[(N, K, triton.cdiv(H // K, heads))](
            prefix_NHD, lse_NH, q_NHD, self.kv, self.packed, N, layer, q_NHD.stride(0), self.scale,
            HEADS=heads, **sizes,
        )  # fmt: skip
        own_kernel[(N, K)](
            out_NHD, prefix_NHD, lse_NH, q_NHD, k_NKD, v_NKD, self.kv, self.packed, N, layer,
            q_NHD.stride(0), k_NKD.stride(0), v_NKD.stride(0), self.scale,
            HEADS=max(triton.next_power_of_2(H // K), 16), **sizes,
        )  # fmt: skip
        return out_NHD


@triton.jit(do_not_specialize=["layer"])
def prefix_kernel(
    out, lse, q, kv, packed, N, layer, q_stride, scale,
    HEADS: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """softmax(scale * q k) v over the rows' prefixes, and the log-sum-exp. One program for each tile and KV head."""
    tile, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    starts = packed + LAYOUT
    order, slots, lengths = starts + N + 1, starts + 2 * N + 1, starts + 3 * N + 1
    first, end = tl.load(starts + tile), tl.load(starts + tile + 1)
    if first == end:
        return
    m = tl.arange(0, TILE_ROWS * HEADS)
    at, g, d = first + m // HEADS, part * HEADS + m % HEADS, tl.arange(0, HEAD)
    here = (at < end) & (g < G)
    row = tl.load(order + at, mask=here, other=0)
    length = tl.load(lengths + row, mask=here, other=0)
    num_slots, room, slot = tl.load(packed), tl.load(packed + 1), tl.load(slots + tl.load(order + first))
    keys = kv + ((layer * 2 * num_slots + slot) * K + head) * room * D
    values = keys + num_slots * K * room * D
    query = head * G + g
    wanted = here[:, None] & (d < D)[None, :]
    q_MD = tl.load(q + row[:, None] * q_stride + query[:, None] * D + d[None, :], mask=wanted, other=0.0)
    largest_M = tl.full([TILE_ROWS * HEADS], -float("inf"), tl.float32)
    total_M = tl.zeros([TILE_ROWS * HEADS], tl.float32)
    sum_MD = tl.zeros([TILE_ROWS * HEADS, HEAD], tl.float32)
    longest = tl.max(length, 0)
    for start in range(0, longest, BLOCK_KEYS):
        largest_M, total_M, sum_MD = attend_block(
            q_MD, keys, values, start, length, longest, scale, largest_M, total_M, sum_MD, D, HEAD
        )
    tl.store(out + (row * K * G + query)[:, None] * D + d[None, :], sum_MD / total_M[:, None], mask=wanted)
    tl.store(lse + row * K * G + query, largest_M + tl.log(total_M), mask=here)


@triton.jit(do_not_specialize=["layer"])
def own_kernel(
    out, prefix, lse, q, k, v, kv, packed, N, layer, q_stride, k_stride, v_stride, scale,
    HEADS: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """Stores the new token's keys and values and goes on from the prefix over the row's own tokens. One program for
    each row and KV head."""
    row, head = tl.program_id(0), tl.program_id(1)
    own = tl.load(packed + LAYOUT + 4 * N + 1 + row)
    offset, num_slots, room = tl.load(packed + 2), tl.load(packed + 3), tl.load(packed + 4)
    keys = kv + (offset + ((layer * 2 * num_slots + row) * K + head) * room) * D
    values = keys + num_slots * K * room * D
    g, d = tl.arange(0, HEADS), tl.arange(0, HEAD)
    query = head * G + g
    wanted = (g < G)[:, None] & (d < D)[None, :]
    q_MD = tl.load(q + row * q_stride + query[:, None] * D + d[None, :], mask=wanted, other=0.0)
    new_k_D = tl.load(k + row * k_stride + head * D + d, mask=d < D, other=0.0)
    new_v_D = tl.load(v + row * v_stride + head * D + d, mask=d < D, other=0.0)
    tl.store(keys + own * D + d, new_k_D, mask=(d < D) & (own >= 0))
    tl.store(values + own * D + d, new_v_D, mask=(d < D) & (own >= 0))
    # The prefix enters as one key with its log-sum-exp as score, the new token as another: not read back from memory.
    lse_M = tl.load(lse + row * K * G + query, mask=g < G, other=0.0)
    prefix_MD = tl.load(prefix + (row * K * G + query)[:, None] * D + d[None, :], mask=wanted, other=0.0)
    score_M = scale * tl.sum(q_MD.to(tl.float32) * new_k_D.to(tl.float32)[None, :], 1)
    score_M = tl.where(own >= 0, score_M, -float("inf"))
    largest_M = tl.maximum(lse_M, score_M)
    total_M = tl.exp(lse_M - largest_M) + tl.exp(score_M - largest_M)
    sum_MD = prefix_MD * tl.exp(lse_M - largest_M)[:, None]
    sum_MD += tl.exp(score_M - largest_M)[:, None] * new_v_D.to(tl.float32)[None, :]
    length = tl.zeros([HEADS], tl.int64) + own
    for start in range(0, own, BLOCK_KEYS):
        largest_M, total_M, sum_MD = attend_block(
            q_MD, keys, values, start, length, own, scale, largest_M, total_M, sum_MD, D, HEAD
        )
    out_MD = (sum_MD / total_M[:, None]).to(out.dtype.element_ty)
    tl.store(out + (row * K * G + query)[:, None] * D + d[None, :], out_MD, mask=wanted)


@triton.jit
def attend_block(
    q_MD, keys, values, start, length_M, longest, scale, largest_M, total_M, sum_MD,
    D: tl.constexpr, HEAD: tl.constexpr,
):  # fmt: skip
    """One step of a softmax whose largest score is not known in advance: earlier sums are scaled to the new one."""
    key, d = start + tl.arange(0, BLOCK_KEYS), tl.arange(0, HEAD)
    there_LD = (key < longest)[:, None] & (d < D)[None, :]
    k_LD = tl.load(keys + key[:, None] * D + d[None, :], mask=there_LD, other=0.0)
    v_LD = tl.load(values + key[:, None] * D + d[None, :], mask=there_LD, other=0.0)
    # ieee: TF32, the default for float32, keeps ten bits.
    scores_ML = scale * tl.dot(q_MD, tl.trans(k_LD), input_precision="ieee")
    scores_ML = tl.where(key[None, :] < length_M[:, None], scores_ML, -float("inf"))
    new_M = tl.maximum(largest_M, tl.max(scores_ML, 1))
    p_ML, shrink_M = tl.exp(scores_ML - new_M[:, None]), tl.exp(largest_M - new_M)
    total_M = total_M * shrink_M + tl.sum(p_ML, 1)
    sum_MD = sum_MD * shrink_M[:, None] + tl.dot(p_ML.to(v_LD.dtype), v_LD, input_precision="ieee")
    return new_M, total_M, sum_MD


@triton.jit
def rms_norm_kernel(out, x, weight, E, eps, BLOCK: tl.constexpr):
    e = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * E + e
    x_E = tl.load(x + at, mask=e < E, other=0.0).to(tl.float32)
    norm_E = x_E * tl.rsqrt(tl.sum(x_E * x_E, 0) / E + eps)
    weight_E = tl.load(weight + e, mask=e < E, other=0.0)
    tl.store(out + at, norm_E.to(weight_E.dtype) * weight_E, mask=e < E)


@triton.jit
def rotate_kernel(x, stride, cos, sin, J, half, BLOCK: tl.constexpr):
    """All heads of one row, in place: pairs (d, d + half) are turned by the row's angle d."""
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    j, d = i // half, i % half
    left = x + row * stride + j * 2 * half + d
    a, b = tl.load(left, mask=j < J).to(tl.float32), tl.load(left + half, mask=j < J).to(tl.float32)
    c, s = tl.load(cos + row * half + d).to(tl.float32), tl.load(sin + row * half + d).to(tl.float32)
    tl.store(left, (a * c - b * s).to(x.dtype.element_ty), mask=j < J)
    tl.store(left + half, (b * c + a * s).to(x.dtype.element_ty), mask=j < J)


@triton.jit
def swiglu_kernel(out, gate_up, F, BLOCK: tl.constexpr):
    row, f = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * F + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * F + F + f, mask=f < F, other=0.0).to(tl.float32)
    tl.store(out + row * F + f, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=f < F)
