"""What a request may ask for, and how much memory there is for it: what every engine checks before it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vineppo.machine.limits import available_memory_bytes
from vineppo.types import Request, UserError

CPU_SHARE, CUDA_SHARE = 0.4, 0.6  # of the memory that is free when the engine is made; the learner needs the rest
SMALLEST_DEFAULT = 1024


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


def default_kv_tokens(bytes_per_token: int, device: torch.device) -> int:
    """How many tokens' keys and values fit in this machine's free memory, leaving room for everything else."""
    on_cuda = device.type == "cuda"
    memory = CUDA_SHARE * torch.cuda.mem_get_info(device)[0] if on_cuda else CPU_SHARE * _free_cpu_memory()
    return max(int(memory) // bytes_per_token, SMALLEST_DEFAULT)


def _free_cpu_memory() -> int:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024  # of the machine, where a container may get less
    except (OSError, KeyError):
        free = 4 << 30  # other systems do not say without a further dependency
    return min(free, available_memory_bytes())
