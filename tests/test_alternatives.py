"""The table of alternatives, against the definition of it, one pair at a time."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from vineppo.alternatives import RAREST, alternatives_table, sampled_logprobs
from vineppo.types import Completion

LIKELY, RARE, RARER = math.log(0.6), RAREST - 1, RAREST - 2


def make_completion(seed: int) -> Completion:
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 30)):
        logprobs = sorted((rng.choice((LIKELY, -3.0, RARE, RARER)) for _ in range(rng.randint(0, 5))), reverse=True)
        rows.append(tuple(zip(rng.sample(range(50_000), len(logprobs)), logprobs, strict=True)))
    tokens = tuple(rng.choice(row)[0] if row and rng.random() < 0.8 else 50_001 for row in rows)
    return Completion(tokens, (-0.25,) * len(rows), "eos", 0, tuple(rows))


@pytest.mark.parametrize("seed", range(20))
def test_the_table_holds_the_likeliest_and_all_that_are_not_too_rare(seed):
    completion = make_completion(seed)
    ids_LM, logprobs_LM = alternatives_table(completion)
    assert ids_LM.dtype == np.int64
    widths = []
    for token, pairs in enumerate(completion.alternatives or ()):
        kept = [pair for rank, pair in enumerate(pairs) if rank == 0 or pair[1] > RAREST]
        assert list(zip(ids_LM[token], logprobs_LM[token], strict=True))[: len(kept)] == kept
        assert not ids_LM[token, len(kept) :].any()
        assert (logprobs_LM[token, len(kept) :] == -np.inf).all()
        widths.append(len(kept))
    assert ids_LM.shape == (len(completion.token_ids), max(1, *widths, 0))


@pytest.mark.parametrize("seed", range(20))
def test_a_drawn_token_has_the_log_prob_of_the_table_or_the_engines_own(seed):
    completion = make_completion(seed)
    found = sampled_logprobs(completion, *alternatives_table(completion))
    for token, pairs, logprob in zip(completion.token_ids, completion.alternatives or (), found, strict=True):
        kept = {i: p for rank, (i, p) in enumerate(pairs) if rank == 0 or p > RAREST}
        assert logprob == kept.get(token, -0.25)


def test_without_alternatives_there_is_no_table():
    with pytest.raises(ValueError, match="num_alternatives was 0"):
        alternatives_table(Completion((1,), (0.0,), "eos", 0))
