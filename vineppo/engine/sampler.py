"""Draws tokens from logits: one uniform number per token, hashed from (seed, index), and the inverse of the CDF.

Nothing here depends on which other rows are in the batch, so a completion is decided by its own seed.

S distributions, N draws (the vines of one state share its distribution), V vocabulary, W candidates, C chunks,
M alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vineppo.types import Alternatives, SamplingParams, UserError

FIRST_CANDIDATES = 64  # a trained model's nucleus seldom holds more; rows that need more try again with more
CHUNK = 256  # tokens summed at once before the exact search inside one chunk


def draw_uniforms(seeds_N: torch.Tensor, indices_N: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1) for draw number `index` of the request with this (signed 64-bit) seed.

    Counter-based: two rounds of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), so that neither neighbouring seeds nor
    neighbouring indices are related.
    """
    bits_N = _mix(_mix(seeds_N) + indices_N * _GOLDEN_GAMMA)
    return _shift_right(bits_N, 11).double() * 2.0**-53


def as_int64(seed: int) -> int:
    """Any Python integer's low 64 bits, as the signed number torch can hold."""
    return (seed + 2**63) % 2**64 - 2**63


class Drawn(NamedTuple):
    tokens_N: torch.Tensor
    logprobs_N: torch.Tensor
    alternatives: list[Alternatives] | None  # [S][<= num_alternatives]; None where 0 are asked for


def sample(logits_SV: torch.Tensor, rows_N: torch.Tensor, uniforms_N: torch.Tensor, params: SamplingParams) -> Drawn:
    """Token and log-probability for each draw n, from distribution rows_N[n]. Overwrites the logits.

    Order as in transformers: temperature, then top_k, then top_p. The log-probability is that of the tempered
    softmax over the whole vocabulary, before top_k and top_p; those of the alternatives are of what is left after them.
    Where logits are not finite it is NaN, and token and alternatives mean nothing: `check_drawn`.
    """
    logits_SV = logits_SV.float()
    if params.temperature not in (0, 1):
        logits_SV.div_(params.temperature)
    probs_SV = F.softmax(logits_SV, dim=-1)
    if params.temperature == 0:
        tokens_N = logits_SV.argmax(-1)[rows_N]
    elif _cuts(probs_SV, params):
        tokens_N = _draw_candidates(probs_SV, rows_N, uniforms_N, params, params.top_k or FIRST_CANDIDATES)
    else:
        tokens_N = _draw_any(probs_SV, rows_N, uniforms_N)
    alternatives = _find_alternatives(logits_SV, probs_SV, params) if params.num_alternatives else None
    return Drawn(tokens_N, probs_SV[rows_N, tokens_N].log(), alternatives)


def check_drawn(logprobs: Iterable[float], version: int) -> None:
    """Raises UserError where what was drawn is not to be used."""
    if not all(map(math.isfinite, logprobs)):
        after = f" after iteration {version}" if version else ""
        raise UserError(
            f"the policy's logits are not finite{after}: training has diverged, or the model is damaged; lower "
            "learner.optim.lr, or continue from an earlier checkpoint"
        )


def nucleus_floor(probs_NV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The smallest probability that top_k and top_p keep, [N]."""
    floor_N = torch.zeros_like(probs_NV[:, 0])
    for rows, probs_SW, _, kept_SW in _nuclei(probs_NV, params):
        floor_N[rows] = probs_SW.masked_fill(~kept_SW, torch.inf).min(-1).values.to(floor_N.dtype)
    return floor_N


def _cuts(probs_SV: torch.Tensor, params: SamplingParams) -> bool:
    return params.top_p < 1 or 0 < params.top_k < probs_SV.shape[1]


def _find_alternatives(
    logits_SV: torch.Tensor, probs_SV: torch.Tensor, params: SamplingParams
) -> list[Alternatives]:  # [S][<= M]
    """The likeliest tokens that can be drawn, under the distribution that they are drawn from."""
    if params.temperature == 0:
        return [((token, 0.0),) for token in logits_SV.argmax(-1).tolist()]
    if not _cuts(probs_SV, params):
        probs_SM, ids_SM = probs_SV.topk(min(params.num_alternatives, probs_SV.shape[1]))
        return _pair(ids_SM, probs_SM)
    found: list[Alternatives] = [()] * len(probs_SV)
    for rows, probs_SW, ids_SW, kept_SW in _nuclei(probs_SV, params):
        probs_SW = probs_SW * kept_SW
        probs_SW /= probs_SW.sum(-1, keepdim=True)
        pairs = _pair(ids_SW[:, : params.num_alternatives], probs_SW[:, : params.num_alternatives])
        for row, alternatives in zip(rows.tolist(), pairs, strict=True):
            found[row] = alternatives
    return found


def _pair(ids_SM: torch.Tensor, probs_SM: torch.Tensor) -> list[Alternatives]:
    """Without what has no probability; the columns fall."""
    columns = ids_SM.tolist(), probs_SM.log().tolist(), (probs_SM > 0).sum(-1).tolist()
    return [tuple(zip(ids[:n], logprobs[:n], strict=True)) for ids, logprobs, n in zip(*columns, strict=True)]


def _nuclei(
    probs_NV: torch.Tensor, params: SamplingParams
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Every row once, with others whose nuclei fit in the same width: row numbers, and `_nucleus` but for the last."""
    rows, width = torch.arange(len(probs_NV), device=probs_NV.device), params.top_k or FIRST_CANDIDATES
    while len(rows):
        probs_SW, ids_SW, kept_SW, complete_S = _nucleus(probs_NV[rows], params, width)
        yield rows[complete_S], probs_SW[complete_S], ids_SW[complete_S], kept_SW[complete_S]
        rows, width = rows[~complete_S], width * 16


def _nucleus(
    probs_SV: torch.Tensor, params: SamplingParams, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `width` likeliest tokens: their probabilities, ids, which are kept, and which rows hold all that is kept.

    No whole vocabulary is sorted: that costs as much as the model.
    """
    width = min(width, probs_SV.shape[1])
    probs_SW, ids_SW = probs_SV.topk(width)
    probs_SW = probs_SW.double()
    mass_S1 = probs_SW.sum(-1, keepdim=True) if params.top_k else probs_SV.new_ones(len(probs_SV), 1).double()
    cumulative_SW = probs_SW.cumsum(-1)
    # The smallest set that reaches top_p: a token stays while those before it have not reached it.
    kept_SW = cumulative_SW - probs_SW < params.top_p * mass_S1
    kept_SW[:, 0] = True
    complete_S = ~kept_SW[:, -1] | (width in (params.top_k, probs_SV.shape[1]))
    return probs_SW, ids_SW, kept_SW, complete_S


def _draw_candidates(
    probs_SV: torch.Tensor, rows_N: torch.Tensor, uniforms_N: torch.Tensor, params: SamplingParams, width: int
) -> torch.Tensor:
    """From the nucleus, in order of probability."""
    probs_SW, ids_SW, kept_SW, complete_S = _nucleus(probs_SV, params, width)
    tokens_N = ids_SW[rows_N, _invert(probs_SW.mul_(kept_SW)[rows_N], uniforms_N)]
    again_N = ~complete_S[rows_N]
    if again_N.any():
        wide_rows, rows = rows_N[again_N].unique(return_inverse=True)
        tokens_N[again_N] = _draw_candidates(probs_SV[wide_rows], rows, uniforms_N[again_N], params, width * 16)
    return tokens_N


def _draw_any(probs_SV: torch.Tensor, rows_N: torch.Tensor, uniforms_N: torch.Tensor) -> torch.Tensor:
    """From the whole vocabulary, in its own order: first the chunk, then the token in it, for one pass over V."""
    vocabulary = probs_SV.shape[1]
    if vocabulary <= 2 * CHUNK:
        return _invert(probs_SV.double()[rows_N], uniforms_N)
    whole = vocabulary // CHUNK
    sums_SC = probs_SV[:, : whole * CHUNK].unflatten(1, (whole, CHUNK)).sum(-1)
    if whole * CHUNK < vocabulary:
        sums_SC = torch.cat((sums_SC, probs_SV[:, whole * CHUNK :].sum(-1, keepdim=True)), dim=1)
    sums_NC = sums_SC.double()[rows_N]
    chunk_N = _invert(sums_NC, uniforms_N)
    below_N = (sums_NC.cumsum(-1) - sums_NC).gather(1, chunk_N[:, None]).squeeze(1)
    ids_NW = chunk_N[:, None] * CHUNK + torch.arange(CHUNK, device=probs_SV.device)
    probs_NW = probs_SV[rows_N[:, None], ids_NW.clamp(max=vocabulary - 1)].double()
    probs_NW.masked_fill_(ids_NW >= vocabulary, 0)
    within_N = (uniforms_N * sums_NC.sum(-1) - below_N) / probs_NW.sum(-1)
    return (chunk_N * CHUNK + _invert(probs_NW, within_N.clamp(min=0))).clamp_(max=vocabulary - 1)  # of NaN, again


def _invert(weights_NW: torch.Tensor, uniforms_N: torch.Tensor) -> torch.Tensor:
    """The index where the running sum first exceeds u * total; never one of weight 0, even if rounding says u = 1."""
    cdf_NW = weights_NW.cumsum(-1)
    total_N = cdf_NW[:, -1]
    target_N = torch.minimum(uniforms_N * total_N, total_N.nextafter(torch.zeros_like(total_N)))
    indices_N = torch.searchsorted(cdf_NW, target_N[:, None], right=True).squeeze(1)
    return indices_N.clamp_(max=cdf_NW.shape[-1] - 1)  # beyond only where weights are NaN, and so are log-probs then


def _shift_right(bits_N: torch.Tensor, n: int) -> torch.Tensor:
    return (bits_N >> n) & ((1 << (64 - n)) - 1)  # torch shifts the sign in; splitmix64 is unsigned


def _mix(bits_N: torch.Tensor) -> torch.Tensor:
    bits_N = bits_N + _GOLDEN_GAMMA
    bits_N = (bits_N ^ _shift_right(bits_N, 30)) * as_int64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ _shift_right(bits_N, 27)) * as_int64(0x94D049BB133111EB)
    return bits_N ^ _shift_right(bits_N, 31)


_GOLDEN_GAMMA = as_int64(0x9E3779B97F4A7C15)
