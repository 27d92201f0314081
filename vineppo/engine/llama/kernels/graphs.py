"""Decoding in steps of a few fixed sizes; on a GPU each is recorded once as a CUDA graph and replayed with other rows.

A step of a small model is hundreds of kernels, which take longer to launch one by one than to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from vineppo.engine.llama.attention import DecodeBatch
from vineppo.engine.llama.kernels.triton import TritonAttention, fill, pack
from vineppo.engine.llama.model import Llama


class FixedSizeSteps:
    """(tokens_N, positions_N, batch) -> logits_NV, like the plain forward; the rows up to the next size are idle.

    Recorded graphs know addresses: weights are loaded in place, and when keys and values move, all are recorded anew.
    """

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.steps: dict[int, Step] = {}
        self.kv_address = 0
        self.recorder = Recorder() if model.device.type == "cuda" else None

    def __call__(self, tokens_N: Sequence[int], positions_N: Sequence[int], batch: DecodeBatch) -> torch.Tensor:
        kv_address = batch.trunk_kv.kv.data_ptr()
        if kv_address != self.kv_address:
            self.steps.clear()
            self.kv_address = kv_address
            if self.recorder:
                self.recorder.forget()
        size = next_size(len(tokens_N))
        if size not in self.steps:
            self.steps[size] = Step(self.model, size, self.recorder)
        hidden_NE = self.steps[size].hidden(tokens_N, positions_N, batch)[: len(tokens_N)]
        return self.model.logits(hidden_NE)


def next_size(n: int) -> int:
    """Sizes are an eighth of a power of two apart, so at most an eighth of the work is for idle rows (over 8 rows)."""
    step = max(1 << max(n - 1, 0).bit_length() >> 4, 8)
    return -(-n // step) * step


class Step:
    """One forward for `size` rows, whose inputs lie where they always lie."""

    def __init__(self, model: Llama, size: int, recorder: Recorder | None) -> None:
        self.model, self.size, self.recorder = model, size, recorder
        self.inputs: torch.Tensor | None = None  # tokens, positions, what attention knows
        self.graph: torch.cuda.CUDAGraph | None = None

    def hidden(self, tokens_N: Sequence[int], positions_N: Sequence[int], batch: DecodeBatch) -> torch.Tensor:
        """[size, E]; overwritten by the next step of this size."""
        rows = [fill(np.array(numbers, dtype=np.int64), self.size, 0) for numbers in (tokens_N, positions_N)]
        numbers = torch.from_numpy(np.concatenate([*rows, pack(batch, self.size)]))
        if self.inputs is None:
            self.inputs = torch.empty_like(numbers, device=self.model.device)
        self.inputs.copy_(numbers)
        if self.graph is None:
            tokens, positions, packed = self.inputs.split((self.size, self.size, len(numbers) - 2 * self.size))
            attend = TritonAttention(packed, batch.trunk_kv, batch.scale)

            def forward() -> torch.Tensor:
                return self.model.hidden(tokens, positions, attend)

            if self.recorder is None:
                return forward()
            self.graph, self.output = self.recorder.record(forward)
        self.graph.replay()
        return self.output


class Recorder:
    """Records graphs that share memory, as no two of them run at a time.

    Warm-up and recording are on one stream: what a library allocates for a stream (cuBLAS its workspace) is there
    before anything is recorded, so it is not in the graphs' memory.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.forget()

    def forget(self) -> None:
        """Other memory for what comes; that of graphs which are gone is given back."""
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, forward: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Only replay() fills the tensor. Run once before, for all that is compiled or allocated at first."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            forward()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            output = forward()
        return graph, output
