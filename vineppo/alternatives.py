"""The likeliest tokens before each draw, as arrays. Shapes: L tokens of a completion, M alternatives."""

from __future__ import annotations

import math

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
    rows = [pairs[:1] + tuple(pair for pair in pairs[1:] if pair[1] > RAREST) for pairs in rows]
    width = max(1, *map(len, rows))
    padded = [pairs + ((0, -math.inf),) * (width - len(pairs)) for pairs in rows]
    table = np.array(padded, dtype=np.float64)
    return table[..., 0].astype(np.int64), table[..., 1]


def sampled_logprobs(completion: Completion) -> np.ndarray:  # [L]
    """Of the drawn tokens, under the distribution that they were drawn from where they are among the alternatives, and
    under the whole softmax where they are not."""
    ids_LM, logprobs_LM = alternatives_table(completion)
    drawn_LM = (ids_LM == np.array(completion.token_ids)[:, None]) & (logprobs_LM > -math.inf)
    known_L = np.where(drawn_LM, logprobs_LM, -math.inf).max(axis=1)
    return np.where(drawn_LM.any(axis=1), known_L, completion.logprobs)
