"""What a request may ask for. Both engines check with this before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vineppo.types import Request, UserError


def context_limit(config: Any) -> int | None:
    """The longest sequence the model was built for, prompt included; None where it does not say."""
    return getattr(config, "max_position_embeddings", None)


def check_requests(requests: Sequence[Request], *, vocab_size: int, context: int | None) -> list[int]:
    """The number of tokens that each request may really get: what it asks for, or what the context has left."""
    return [_check_request(request, vocab_size, context) for request in requests]


def _check_request(request: Request, vocab_size: int, context: int | None) -> int:
    prefix = request.prefix_ids
    if not prefix:
        raise UserError("a request has an empty prefix; begin it with at least one token, such as <bos>")
    if request.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {request.max_new_tokens}")
    if min(prefix) < 0 or max(prefix) >= vocab_size:
        raise UserError(f"a request has token ids outside of the model's vocabulary of {vocab_size}")
    if context is None:
        return request.max_new_tokens
    if len(prefix) >= context:
        raise UserError(f"a prefix of {len(prefix)} tokens leaves no room in the model's context of {context}")
    return min(request.max_new_tokens, context - len(prefix))
