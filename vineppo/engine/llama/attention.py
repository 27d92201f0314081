"""Attention over shared prefixes: each prefix is read once for all the rows that continue it.

A row is one sequence that gets a token. Three rows, 1 2 3 + 7, 1 2 3 + 8 5 and 1 2 3, on one trunk 1 2 3 4:

    prefix   one product of all three queries with the trunk's keys; the 4 is masked
    own      one product for each of the first two rows, with the keys of 7, and of 8 5
    merged   softmax over both parts, from each part's result and log-sum-exp; exact (cascade attention)

Plain batched products are used because on CPU they are several times faster than scaled_dot_product_attention for one
query per row.

N rows, of which the first B have own tokens and the others stand on a trunk; T trunks, R rows of a trunk, L keys,
H = K * G query heads for K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from vineppo.engine.llama.kv_cache import SlotKV

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, q_NHD, k_NKD, v_NKD) -> o_NHD; stores the keys and values it is given."""


@dataclass(frozen=True)
class PrefixGroup:
    """Rows whose prefixes are multiplied in one batched product: up to R rows of each of T neighbouring trunks."""

    trunks: slice
    length: int  # L
    rows_TR: torch.Tensor  # which row stands there; row 0 where none does
    mask_T1R1L: torch.Tensor | None  # 0 within a row's prefix, -inf behind it; None where all are L long
    rows_M: torch.Tensor  # the members ...
    places_M: torch.Tensor  # ... and where they stand, t * R + r


@lru_cache(maxsize=1)  # rows often stay where they are for many forwards
def group_prefixes(
    trunks_N: tuple[int, ...], lengths_N: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[PrefixGroup]:
    """One group for each trunk with far more rows than the others, as these would be padded; one for all others."""
    like = torch.empty(0, dtype=dtype, device=device)
    trunks, lengths = np.asarray(trunks_N), np.asarray(lengths_N)
    counts = np.bincount(trunks)
    widest = max(2 * len(trunks) // len(counts), 1)
    heavy = np.flatnonzero(counts > widest)
    groups = [_make_group(np.flatnonzero(trunks == t), trunks, lengths, int(t), int(t) + 1, like) for t in heavy]
    light = np.flatnonzero(counts[trunks] <= widest)
    if len(light):
        groups.append(_make_group(light, trunks, lengths, 0, len(counts), like))
    return groups


def _make_group(
    rows: np.ndarray, trunks: np.ndarray, lengths: np.ndarray, first: int, end: int, like: torch.Tensor
) -> PrefixGroup:
    rows = rows[np.argsort(trunks[rows], kind="stable")]
    slots = trunks[rows] - first
    ranks = np.arange(len(rows)) - np.searchsorted(slots, slots)
    width, longest = int(ranks.max()) + 1, int(lengths[rows].max())
    places = slots * width + ranks
    row_at = np.zeros((end - first) * width, dtype=np.int64)
    row_at[places] = rows
    mask = None
    if lengths[rows].min() < longest:
        visible = np.full(len(row_at), longest)
        visible[places] = lengths[rows]
        mask = _mask_behind(visible, longest, like).view(end - first, 1, width, 1, longest)
    return PrefixGroup(
        trunks=slice(first, end),
        length=longest,
        rows_TR=torch.from_numpy(row_at).view(end - first, width).to(like.device),
        mask_T1R1L=mask,
        rows_M=torch.from_numpy(rows).to(like.device),
        places_M=torch.from_numpy(places).to(like.device),
    )


def _mask_behind(lengths: np.ndarray, longest: int, like: torch.Tensor) -> torch.Tensor:
    hidden = torch.from_numpy(np.arange(longest) >= lengths[:, None]).to(like.device)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)


@dataclass(frozen=True)
class DecodeBatch:
    """Rows that get one new token each: own tokens are in slots 0 .. B-1 of `own_kv`, trunks in the slots named."""

    trunk_kv: SlotKV
    own_kv: SlotKV
    trunk_slots_N: Sequence[int]
    prefix_lengths_N: Sequence[int]
    own_lengths_B: Sequence[int]  # before the new token
    scale: float

    def arrays(self) -> list[np.ndarray]:
        """Seats [N], prefix lengths [N] and own lengths [B], int64."""
        rows = (self.trunk_slots_N, self.prefix_lengths_N, self.own_lengths_B)
        return [np.array(numbers, dtype=np.int64) for numbers in rows]


class DecodeAttention:
    def __init__(self, batch: DecodeBatch) -> None:
        self.trunk_kv, self.own_kv, self.scale = batch.trunk_kv, batch.own_kv, batch.scale
        kv, own_kv, own_lengths_B = self.trunk_kv.kv, self.own_kv, batch.own_lengths_B
        self.groups = group_prefixes(tuple(batch.trunk_slots_N), tuple(batch.prefix_lengths_N), kv.dtype, kv.device)
        self.num_own = len(own_lengths_B)
        if self.num_own:
            like, written_B = own_kv.kv, np.asarray(own_lengths_B)  # tokens there before this one
            self.longest = int(written_B.max()) + 1
            self.at_B: int | torch.Tensor = self.longest - 1
            self.mask_B11L = None
            if written_B.min() + 1 < self.longest:
                self.at_B = torch.from_numpy(written_B).to(like.device)
                self.mask_B11L = _mask_behind(written_B + 1, self.longest, like)[:, None, None]
            self.slots_B = torch.arange(self.num_own, device=like.device)

    def __call__(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
        q_NHD = q_NHD * self.scale
        o_NHD, lse_NH = self._prefix(layer, q_NHD)
        if self.num_own:
            B = self.num_own
            self._store(layer, k_NKD[:B], v_NKD[:B])
            own_BHD, own_lse_BH = self._own(layer, q_NHD[:B])
            weight_BH1 = torch.sigmoid(lse_NH[:B] - own_lse_BH)[..., None].to(o_NHD.dtype)
            o_NHD[:B] = torch.lerp(own_BHD, o_NHD[:B], weight_BH1)
        return o_NHD

    def _prefix(self, layer: int, q_NHD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        o_NHD = torch.empty_like(q_NHD)
        lse_NH = q_NHD.new_empty(q_NHD.shape[:2], dtype=torch.float32)
        num_heads, head_dim = q_NHD.shape[1:]
        for group in self.groups:
            keys_TKLD = self.trunk_kv.keys(layer)[group.trunks, :, : group.length]
            values_TKLD = self.trunk_kv.values(layer)[group.trunks, :, : group.length]
            T, K, _, _ = keys_TKLD.shape
            R = group.rows_TR.shape[1]
            q_TRKGD = q_NHD[group.rows_TR].view(T, R, K, -1, head_dim)
            q_CMD = q_TRKGD.transpose(1, 2).reshape(T * K, -1, head_dim)
            scores_CML = torch.bmm(q_CMD, keys_TKLD.flatten(0, 1).transpose(1, 2))
            if group.mask_T1R1L is not None:
                scores_CML.view(T, K, R, -1, group.length).add_(group.mask_T1R1L)
            o_CMD, lse_CM = _softmax_values(scores_CML, values_TKLD.flatten(0, 1))
            o_PHD = o_CMD.view(T, K, R, -1, head_dim).transpose(1, 2).reshape(T * R, num_heads, head_dim)
            lse_PH = lse_CM.view(T, K, R, -1).transpose(1, 2).reshape(T * R, num_heads)
            o_NHD.index_copy_(0, group.rows_M, o_PHD.index_select(0, group.places_M))
            lse_NH.index_copy_(0, group.rows_M, lse_PH.index_select(0, group.places_M))
        return o_NHD, lse_NH

    def _store(self, layer: int, k_BKD: torch.Tensor, v_BKD: torch.Tensor) -> None:
        keys, values = self.own_kv.keys(layer), self.own_kv.values(layer)
        if isinstance(self.at_B, int):  # all rows are equally long: a plain slice is cheaper
            keys[: self.num_own, :, self.at_B] = k_BKD
            values[: self.num_own, :, self.at_B] = v_BKD
        else:
            keys[self.slots_B, :, self.at_B] = k_BKD
            values[self.slots_B, :, self.at_B] = v_BKD

    def _own(self, layer: int, q_BHD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys_BKLD = self.own_kv.keys(layer)[: self.num_own, :, : self.longest]
        values_BKLD = self.own_kv.values(layer)[: self.num_own, :, : self.longest]
        B, K, L, D = keys_BKLD.shape
        scores_CGL = torch.bmm(q_BHD.reshape(B * K, -1, D), keys_BKLD.flatten(0, 1).transpose(1, 2))
        if self.mask_B11L is not None:
            scores_CGL.view(B, K, -1, L).add_(self.mask_B11L)
        o_CGD, lse_CG = _softmax_values(scores_CGL, values_BKLD.flatten(0, 1))
        return o_CGD.view(q_BHD.shape), lse_CG.view(B, -1)


def _softmax_values(scores_CML: torch.Tensor, values_CLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scores) @ values and log-sum-exp(scores).

    The largest probability is exp(max - lse), so two cheap maxima give the log-sum-exp; torch.logsumexp takes ten
    times as long.
    """
    probs_CML = F.softmax(scores_CML, dim=-1, dtype=torch.float32)
    lse_CM = scores_CML.amax(-1).float() - probs_CML.amax(-1).log()
    return torch.bmm(probs_CML.to(values_CLD.dtype), values_CLD), lse_CM


@dataclass(frozen=True)
class PrefillGroup:
    """Trunks with equally many cached and new tokens, whose new tokens lie next to each other in the batch."""

    slots: list[int]
    cached: int
    new: int


class PrefillAttention:
    """Causal attention for the new tokens of several trunks, whose keys and values go into the trunks' slots."""

    def __init__(self, trunk_kv: SlotKV, groups: Sequence[PrefillGroup], scale: float) -> None:
        self.trunk_kv, self.groups, self.scale = trunk_kv, groups, scale
        device = trunk_kv.kv.device
        self.slots = [torch.tensor(group.slots, device=device) for group in groups]
        self.masks = [
            torch.ones(group.new, group.cached + group.new, dtype=torch.bool, device=device).tril(group.cached)
            if group.cached
            else None
            for group in groups
        ]

    def __call__(self, layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
        keys, values = self.trunk_kv.keys(layer), self.trunk_kv.values(layer)
        outputs, start = [], 0
        for group, slots, mask in zip(self.groups, self.slots, self.masks, strict=True):
            end = start + len(slots) * group.new
            shape = (len(slots), group.new)
            total = group.cached + group.new
            keys[slots, :, group.cached : total] = k_NKD[start:end].unflatten(0, shape).transpose(1, 2)
            values[slots, :, group.cached : total] = v_NKD[start:end].unflatten(0, shape).transpose(1, 2)
            o_SHTD = F.scaled_dot_product_attention(
                q_NHD[start:end].unflatten(0, shape).transpose(1, 2),
                keys[slots, :, :total],
                values[slots, :, :total],
                attn_mask=mask,
                is_causal=mask is None,
                scale=self.scale,
                enable_gqa=q_NHD.shape[1] != k_NKD.shape[1],
            )
            outputs.append(o_SHTD.transpose(1, 2).flatten(0, 1))
            start = end
        return torch.cat(outputs)
