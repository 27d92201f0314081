"""What a model says of every token of a response: log-probs without [B, T, V], entropies, the nucleus, values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from vineppo.batch import Batch

CHUNK_TOKENS = 1024
"""Rows of logits that exist at once; at a vocabulary of 49,152 that is 200 MB in fp32."""


class Readings(NamedTuple):
    """What a model says of every action of a batch, in fp32 or wider."""

    logprobs_N: torch.Tensor
    entropies_N: torch.Tensor  # nats; 0 where not asked for
    nucleus_logmass_N: torch.Tensor  # log of the probability that top_p and top_k keep; 0 where not asked for


def reading_dtype(model: Any) -> torch.dtype:
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def token_logprobs(model: Any, batch: Batch, *, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature) of the targets under the batch's action mask, [N], in fp32 or wider."""
    return read_tokens(model, batch, temperature=temperature).logprobs_N


def read_tokens(
    model: Any,
    batch: Batch,
    *,
    temperature: float,
    entropy: bool = False,
    nucleus_floor: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Readings:
    """The readings of every action at `temperature`.

    `nucleus_floor` maps probs_NV to the smallest probability that top_p and top_k keep; the nucleus then is all tokens
    above it and the target, whatever its own.

    Hidden states are cut down to the actions before the head, and the head runs over chunks of tokens that are
    computed again in the backward pass: [B, T, V] never exists.
    """
    hidden_NH = read_hidden(model, batch)
    targets_N = batch.target_ids_BT[batch.action_mask_BT]
    chunks = zip(hidden_NH.split(CHUNK_TOKENS), targets_N.split(CHUNK_TOKENS), strict=True)
    head = model.get_output_embeddings()
    soft_cap = getattr(model.config, "final_logit_softcapping", None)

    def read(hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:  # [N, 3]
        logits_NV = head(hidden_NH)
        logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        if soft_cap is not None:
            logits_NV = torch.tanh(logits_NV / soft_cap) * soft_cap
        logits_NV = logits_NV / temperature
        logprobs_N = -F.cross_entropy(logits_NV, targets_N, reduction="none")
        nothing_N = torch.zeros_like(logprobs_N)
        entropies_N = compute_entropy(logits_NV) if entropy else nothing_N
        masses_N = compute_nucleus_logmass(logits_NV, targets_N, nucleus_floor) if nucleus_floor else nothing_N
        return torch.stack((logprobs_N, entropies_N, masses_N), dim=1)

    parts = [checkpoint(read, hidden, targets, use_reentrant=False) for hidden, targets in chunks]
    return Readings(*torch.cat(parts).unbind(dim=1))  # type: ignore[arg-type]


def read_hidden(model: Any, batch: Batch) -> torch.Tensor:
    """The last hidden state before every action, [N, H], as the output layer takes it."""
    output = model.base_model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    return output.last_hidden_state[batch.action_mask_BT]


def compute_entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """In nats, [N]."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def compute_nucleus_logmass(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, nucleus_floor: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Log of the probability that top_p and top_k keep, [N]; which tokens are kept is a constant to the gradient."""
    with torch.no_grad():
        probs_NV = logits_NV.softmax(-1)
        kept_NV = probs_NV >= nucleus_floor(probs_NV)[:, None]
        kept_NV.scatter_(1, targets_N[:, None], True)
    return logits_NV.masked_fill(~kept_NV, -torch.inf).logsumexp(-1) - logits_NV.logsumexp(-1)


def token_values(critic: Any, batch: Batch) -> torch.Tensor:
    """V of the state before every action, [N], in fp32 or wider."""
    output = critic(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    values_N = output.logits[..., 0][batch.action_mask_BT]
    return values_N if values_N.dtype == torch.float64 else values_N.float()
