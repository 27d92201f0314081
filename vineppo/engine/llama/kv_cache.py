"""Keys and values: slots for what is being decoded, and finished sequences kept for the vines that will fork them.

Memory is counted in tokens: 2 (K and V) * layers * KV heads * head_dim * bytes per number, for each token.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from vineppo.engine.llama.sequences import common_length
from vineppo.types import UserError


class SlotKV:
    """Room for `slots` sequences of `length` tokens: kv[layer, 0 = keys | 1 = values, slot, head, position, :]."""

    def __init__(self, flat: torch.Tensor, layers: int, slots: int, heads: int, length: int, head_dim: int) -> None:
        shape = (layers, 2, slots, heads, length, head_dim)
        self.length = length
        self.kv = flat[: layers * 2 * slots * heads * length * head_dim].view(shape)

    def keys(self, layer: int) -> torch.Tensor:
        return self.kv[layer, 0]

    def values(self, layer: int) -> torch.Tensor:
        return self.kv[layer, 1]

    def move(self, moves: Sequence[tuple[int, int]], used: int) -> None:
        """Copies slots (from, to), of which the first `used` positions hold something."""
        if moves:
            sources, targets = map(list, zip(*moves, strict=True))
            self.kv[:, :, targets, :, :used] = self.kv[:, :, sources, :, :used]

    def write(self, slot: int, kv: torch.Tensor) -> None:
        self.kv[:, :, slot, :, : kv.shape[3]] = kv

    def read(self, slot: int, length: int) -> torch.Tensor:
        return self.kv[:, :, slot, :, :length]


class KeptSequences:
    """Finished sequences with their keys and values, [layers, 2, heads, tokens, head_dim] each.

    Sorted by tokens, so that the sequence sharing the longest prefix with a given one is its neighbour.
    Over the bound, the least recently used ones go.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._sorted: list[tuple[int, ...]] = []
        self._kv: dict[tuple[int, ...], torch.Tensor] = {}  # in order of last use

    def __len__(self) -> int:
        return len(self._kv)

    def add(self, tokens: tuple[int, ...], kv: torch.Tensor) -> None:
        if tokens in self._kv or len(tokens) > self.max_tokens:
            return
        self.shrink(self.max_tokens - len(tokens))
        insort(self._sorted, tokens)
        self._kv[tokens] = kv
        self.num_tokens += len(tokens)

    def longest_match(self, tokens: tuple[int, ...]) -> torch.Tensor | None:
        """Keys and values of the longest prefix of `tokens` that some kept sequence begins with."""
        at = bisect_left(self._sorted, tokens)
        neighbours = self._sorted[max(at - 1, 0) : at + 1]
        lengths = [common_length(tokens, other) for other in neighbours]
        if not lengths or max(lengths) == 0:
            return None
        best = neighbours[lengths.index(max(lengths))]
        self._kv[best] = self._kv.pop(best)
        return self._kv[best][:, :, :, : max(lengths)]

    def shrink(self, max_tokens: int) -> None:
        """Drops the least recently used sequences until at most this many tokens are held."""
        while self.num_tokens > max_tokens and self._kv:
            oldest = next(iter(self._kv))
            del self._kv[oldest]
            del self._sorted[bisect_left(self._sorted, oldest)]
            self.num_tokens -= len(oldest)

    def clear(self) -> None:
        self.shrink(0)


class KVMemory:
    """All of the engine's keys and values: half of `max_tokens` for slots, half for kept sequences.

    A call whose smallest batch needs more than half for its slots gets it, and the kept sequences give way.
    """

    def __init__(self, max_tokens: int, heads: int, layers: int, head_dim: int, like: torch.Tensor) -> None:
        if max_tokens < 2:
            raise UserError(f"engine.max_kv_tokens must be at least 2, got {max_tokens}")
        self.max_tokens = max_tokens
        self.heads, self.layers, self.head_dim, self.like = heads, layers, head_dim, like
        self.kept = KeptSequences(max_tokens - self.slot_tokens)
        self._flat = like.new_empty(0)

    @property
    def slot_tokens(self) -> int:
        return (self.max_tokens + 1) // 2

    @property
    def numbers_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.head_dim

    @property
    def held_tokens(self) -> int:
        """Tokens that there is memory for right now; at most `max_tokens`."""
        return len(self._flat) // self.numbers_per_token + self.kept.num_tokens

    @property
    def held_bytes(self) -> int:
        return self.held_tokens * self.numbers_per_token * self.like.element_size()

    def lay_out(self, num_trunks: int, trunk_length: int, num_own: int, own_length: int) -> tuple[SlotKV, SlotKV]:
        """Fresh slots for shared trunks and for branches' own tokens; forgets what the previous slots held."""
        trunk_tokens = num_trunks * trunk_length
        needed = trunk_tokens + num_own * own_length
        if needed > self.max_tokens:
            raise ValueError(f"{needed} tokens of slots exceed max_kv_tokens = {self.max_tokens}")
        held = len(self._flat) // self.numbers_per_token
        if needed > held or held > max(needed, self.slot_tokens):
            self._flat = self.like.new_empty(0)  # freed before the other one is made
            self.kept.max_tokens = self.max_tokens - max(needed, self.slot_tokens)
            self.kept.shrink(self.kept.max_tokens)
            # Zeros, because positions behind a sequence's end are multiplied too, by 0; memory as found may hold NaN.
            self._flat = self.like.new_zeros(needed * self.numbers_per_token)
        trunks = SlotKV(self._flat, self.layers, num_trunks, self.heads, trunk_length, self.head_dim)
        own = self._flat[trunk_tokens * self.numbers_per_token :]
        return trunks, SlotKV(own, self.layers, num_own, self.heads, own_length, self.head_dim)
