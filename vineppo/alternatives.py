"""The likeliest tokens before each draw, as arrays. Shapes: L tokens of a completion, M alternatives, P pairs."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np

from vineppo.types import Completion

RAREST = math.log(1e-3)


def alternatives_table(completion: Completion) -> tuple[np.ndarray, np.ndarray]:
    """The alternatives of every token as (ids_LM, logprobs_LM); where a token has fewer than others, id 0 and -inf.

    Those rarer than `RAREST` are left out, but for the likeliest: most tokens of a text are certain, and then there is
    one pair to judge and not many.
    """
    rows = completion.alternatives
    if rows is None:
        raise ValueError("the completion has no alternatives: sampling.num_alternatives was 0")
    sizes_L = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    numbers = chain.from_iterable(chain.from_iterable(rows))
    ids_P, logprobs_P = np.fromiter(numbers, dtype=np.float64, count=2 * int(sizes_L.sum())).reshape(-1, 2).T
    tokens_P = np.repeat(np.arange(len(rows)), sizes_L)
    ranks_P = np.arange(len(ids_P)) - np.repeat(sizes_L.cumsum() - sizes_L, sizes_L)
    kept_P = (ranks_P == 0) | (logprobs_P > RAREST)  # likeliest first, so those kept are the first of their token
    shape = len(rows), 1 + int(ranks_P[kept_P].max(initial=0))
    ids_LM, logprobs_LM = np.zeros(shape, dtype=np.int64), np.full(shape, -np.inf)
    ids_LM[tokens_P[kept_P], ranks_P[kept_P]] = ids_P[kept_P]
    logprobs_LM[tokens_P[kept_P], ranks_P[kept_P]] = logprobs_P[kept_P]
    return ids_LM, logprobs_LM


def sampled_logprobs(completion: Completion, ids_LM: np.ndarray, logprobs_LM: np.ndarray) -> np.ndarray:  # [L]
    """Of the drawn tokens, under the distribution that they were drawn from where they are in the completion's table,
    and under the whole softmax where they are not."""
    drawn_LM = (ids_LM == np.array(completion.token_ids)[:, None]) & (logprobs_LM > -math.inf)
    known_L = np.where(drawn_LM, logprobs_LM, -math.inf).max(axis=1)
    return np.where(drawn_LM.any(axis=1), known_L, completion.logprobs)
