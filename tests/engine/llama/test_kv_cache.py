"""Finished sequences: the longest shared prefix is found, the least recently used one goes."""

import random

import pytest
import torch

from vineppo.engine.llama.kv_cache import KeptSequences, KVMemory
from vineppo.engine.llama.sequences import common_length


def kv_of(tokens):
    return torch.tensor(tokens, dtype=torch.float32).view(1, 1, 1, -1, 1)


def test_the_longest_match_is_found_among_many():
    rng = random.Random(0)
    kept, sequences = KeptSequences(10_000), set()
    for _ in range(300):
        tokens = tuple(rng.randrange(3) for _ in range(rng.randint(1, 12)))
        kept.add(tokens, kv_of(tokens))
        sequences.add(tokens)
    assert len(kept) == len(sequences)
    for _ in range(300):
        tokens = tuple(rng.randrange(3) for _ in range(rng.randint(1, 14)))
        best = max(common_length(tokens, other) for other in sequences)
        found = kept.longest_match(tokens)
        assert found is not None
        assert found.flatten().tolist() == list(tokens[:best])


def test_over_the_bound_the_least_recently_used_go():
    kept = KeptSequences(10)
    kept.add((1, 1, 1, 1), kv_of((1, 1, 1, 1)))
    kept.add((2, 2, 2, 2), kv_of((2, 2, 2, 2)))
    assert kept.longest_match((1, 1)) is not None
    kept.add((3, 3, 3), kv_of((3, 3, 3)))
    assert kept.num_tokens == 7
    assert kept.longest_match((2, 2)) is None
    assert kept.longest_match((1, 1)) is not None
    kept.add((4,) * 11, kv_of((4,) * 11))  # alone over the bound: not kept
    assert len(kept) == 2
    kept.clear()
    assert (len(kept), kept.num_tokens, kept.longest_match((1,))) == (0, 0, None)


def test_slots_and_kept_sequences_stay_under_the_bound():
    memory = KVMemory(100, heads=2, layers=3, head_dim=4, like=torch.empty(0))
    memory.kept.add((1,) * 50, torch.zeros(3, 2, 2, 50, 4))
    for slots in [(2, 10, 3, 10), (1, 5, 1, 5), (1, 60, 1, 30), (1, 5, 1, 5)]:
        trunks, own = memory.lay_out(*slots)
        assert memory.held_tokens <= 100
        assert trunks.kv.shape == (3, 2, slots[0], 2, slots[1], 4)
        assert own.kv.shape == (3, 2, slots[2], 2, slots[3], 4)
    assert len(memory.kept) == 0
    with pytest.raises(ValueError, match="max_kv_tokens = 100"):
        memory.lay_out(1, 60, 1, 41)
