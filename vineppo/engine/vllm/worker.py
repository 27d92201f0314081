"""What runs inside vLLM's own processes: our draws, and weights that come through memory. Only vLLM imports this file.

B rows of a decoding step, V vocabulary.
"""

from __future__ import annotations

import math
import os
import select
import signal
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, ClassVar

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # pyright: ignore
from vllm.v1.sample.logits_processor import LogitsProcessor  # pyright: ignore
from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # pyright: ignore

from vineppo.engine.sampler import as_int64, draw_uniforms, sample
from vineppo.types import Alternatives, SamplingParams

Entry = tuple[str, str, list[int], int]  # name, dtype, shape, first byte


class SeededDraw(LogitsProcessor):
    """Draws each row's token as the other engines do, and leaves it as the only one, with its log-prob for a logit.

    vLLM, told to be greedy and to report processed logits, then returns our token and our log-prob. What has no place
    in a row of logits waits here until it is fetched.
    """

    alternatives: ClassVar[dict[str, dict[int, Alternatives]]] = defaultdict(dict)  # by request and index of the draw

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.rows: dict[int, SampledRequest] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self.rows, batch_update, SampledRequest)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, V] -> [B, V], -inf but for the drawn token."""
        rows = [self.rows[index] for index in range(len(logits))]
        # From what a row already has, so that one whose prefix comes in parts, or comes again, draws the same.
        seeds_B = torch.tensor([row.seed for row in rows], device=self.device)
        indices_B = torch.tensor([len(row.token_ids) for row in rows], device=self.device)
        rows_B = torch.arange(len(rows), device=self.device)
        tokens_B, logprobs_B, alternatives = sample(logits, rows_B, draw_uniforms(seeds_B, indices_B), rows[0].params)
        for row, found in zip(rows, alternatives or (), strict=False):
            self.alternatives[row.id][len(row.token_ids)] = found
        return logits.fill_(-torch.inf).scatter_(1, tokens_B[:, None], logprobs_B[:, None])


class SampledRequest:
    """One request in vLLM's batch. `token_ids` is vLLM's own list, which grows."""

    def __init__(self, vllm_params: Any, prompt_ids: list[int] | None, token_ids: list[int]) -> None:
        extra = vllm_params.extra_args
        self.seed = as_int64(extra["seed"])
        self.id = extra["id"]
        self.params = SamplingParams(**extra["params"])  # one call's, so all rows'
        self.token_ids = token_ids


class WorkerMethods:
    """Added to vLLM's worker class: `collective_rpc` calls these in every worker."""

    def die_with(self, trainer_id: int) -> None:
        """vLLM's processes outlive a trainer that was killed, unless somebody watches."""
        mine = {os.getpid(), os.getppid()} - {trainer_id}  # the parent is vLLM's scheduler where that is not we
        Thread(target=kill_after, args=(trainer_id, mine), daemon=True).start()

    def take_alternatives(self, ids: Sequence[str]) -> list[list[Alternatives]]:
        """[len(ids)][L] of requests that have ended, which are forgotten here."""
        return [[found[i] for i in range(len(found))] for found in map(SeededDraw.alternatives.pop, ids)]

    def load_shared_weights(self, path: str, entries: Sequence[Entry]) -> None:
        """Copies the parameters that lie in the file (of memory) at `path` into the model, in place."""
        self.reload_weights(weights_iterator=read_tensors(path, entries))  # type: ignore[attr-defined]
        # On CPU a layer computes with a repacked copy, which is made anew where weights arrive: not in a tied head.
        for module in self.get_model().modules():  # type: ignore[attr-defined]
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def kill_after(watched_id: int, process_ids: set[int]) -> None:
    with suppress(ProcessLookupError):  # it may be over already
        select.select([os.pidfd_open(watched_id)], [], [])
    for process_id in sorted(process_ids, key=os.getpid().__eq__):  # this one last
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def read_tensors(path: str, entries: Sequence[Entry]) -> list[tuple[str, torch.Tensor]]:
    """Views of the file: nothing is copied."""
    dtypes = [getattr(torch, dtype) for _, dtype, _, _ in entries]
    num_bytes = [math.prod(shape) * dtype.itemsize for (_, _, shape, _), dtype in zip(entries, dtypes, strict=True)]
    size = max(start + length for (_, _, _, start), length in zip(entries, num_bytes, strict=True))
    memory = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    return [
        (name, memory[start : start + length].view(dtype).view(shape))
        for (name, _, shape, start), dtype, length in zip(entries, dtypes, num_bytes, strict=True)
    ]
