"""The in-process engine: PyTorch only, for the Llama family, with continuous batching and shared prefixes.

One turn of the loop: seat rows, open places on trunks, one forward for all of them, draw, see who has finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from vineppo.engine.config import TorchEngineConfig
from vineppo.engine.limits import check_requests, context_limit, default_kv_tokens
from vineppo.engine.llama.attention import DecodeBatch, PrefillAttention, PrefillGroup
from vineppo.engine.llama.kernels.choose import make_decode, make_kernels, pick_kernels
from vineppo.engine.llama.kv_cache import KVMemory
from vineppo.engine.llama.model import Llama, sliding_window
from vineppo.engine.llama.scheduler import Branch, Row, Scheduler, Trunk, Wave, extend, plan_waves
from vineppo.engine.sampler import check_drawn, draw_uniforms, sample
from vineppo.engine.stopping import StopRule
from vineppo.machine.runtime import pick_dtype
from vineppo.types import Completion, OnComplete, Request, SamplingParams, UserError

PREFILL_TOKENS = 4096  # new prefix tokens in one forward; bounds its activations, and products gain nothing beyond


class TorchEngine:
    """Samples continuations of token-id prefixes; every distinct prefix is computed once.

    `usage` counts generated tokens by purpose. `prefill_tokens` counts the prefix tokens that were computed and
    `reused_tokens` those that were not, because another request of the call shares them or an earlier call's finished
    sequence begins with them; together they are all requests' prefixes. `decoded_tokens` counts the forwards of one
    token that decoding took, one for each distinct sequence that something was drawn after: requests that draw the same
    tokens, or those of another request's prefix, share them.
    """

    Config = TorchEngineConfig

    def __init__(
        self,
        config: TorchEngineConfig,
        architecture: Any,
        weights: Mapping[str, torch.Tensor],
        tokenizer: Any,
        eos_ids: frozenset[int],
    ) -> None:
        self.config, self.tokenizer, self.eos_ids = config, tokenizer, eos_ids
        device = next(iter(weights.values())).device
        dtype = pick_dtype(config.dtype, device)
        kernels = pick_kernels(config.kernels, dtype, device)
        self.model = Llama(architecture, weights, dtype, make_kernels(kernels, dtype))
        self.decode = make_decode(kernels, self.model)
        self.context, self.window = context_limit(architecture), sliding_window(architecture)
        llama = self.model
        bytes_per_token = 2 * llama.num_layers * llama.num_kv_heads * llama.head_dim * llama.dtype.itemsize
        max_tokens = config.max_kv_tokens or default_kv_tokens(bytes_per_token, device)
        like = torch.empty(0, dtype=llama.dtype, device=device)
        self.memory = KVMemory(max_tokens, llama.num_kv_heads, llama.num_layers, llama.head_dim, like)
        self.scale = llama.head_dim**-0.5
        self.version = 0
        self.usage: Counter[str] = Counter()
        self.prefill_tokens = self.reused_tokens = self.decoded_tokens = 0

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        """One completion per request, in the order of the requests."""
        branches = self._branches(requests)
        waves = plan_waves(
            branches,
            max_batch=self.config.max_batch,
            seat_tokens=self.memory.seat_tokens,
            max_kv_tokens=self.memory.max_tokens,
        )
        rule = StopRule(self.tokenizer, self.eos_ids, params.stop)
        for wave in waves:
            self._complete(Run(self, wave, params, rule, keep=keep, on_complete=on_complete))
        self.reused_tokens += sum(branch.prefix_length for branch in branches)
        self.usage[purpose] += sum(len(branch.token_ids) for branch in branches)
        return [branch.completion(self.version) for branch in branches]

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raises UserError where `generate` would refuse them; samples nothing."""
        self._branches(requests)
        StopRule(self.tokenizer, self.eos_ids, params.stop)

    def _branches(self, requests: Sequence[Request]) -> list[Branch]:
        budgets = check_requests(requests, vocab_size=self.model.vocab_size, context=self.context)
        branches = [Branch(i, *pair) for i, pair in enumerate(zip(requests, budgets, strict=True))]
        for branch in branches:
            self._check_fits(branch)
        return branches

    def _complete(self, run: Run) -> None:
        """A run holds on to its seats, so it must be gone before the next one lays out others."""
        while run.scheduler.busy:
            run.turn()
        self.prefill_tokens += run.prefill_tokens
        self.decoded_tokens += run.decoded_tokens
        self.reused_tokens -= run.prefill_tokens

    @torch.inference_mode()
    def load_weights(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Copies the parameters (transformers' names) in place and forgets every cached prefix."""
        self.memory.kept.clear()
        self.model.load(weights)
        self.version = version

    def _check_fits(self, branch: Branch) -> None:
        needed = branch.prefix_length + branch.budget
        if self.window is not None and needed > self.window:
            raise UserError(
                f"a request may reach {needed} tokens, more than the model's sliding window of {self.window}; "
                'set engine.name = "hf" or lower max_new_tokens'
            )
        if needed - 1 > self.memory.max_tokens:  # the last token is never fed back
            raise UserError(
                f"a request may need {needed - 1} tokens of keys and values, more than max_kv_tokens = "
                f"{self.memory.max_tokens}; raise engine.max_kv_tokens or lower max_new_tokens"
            )


class Run:
    """One wave being decoded."""

    def __init__(
        self,
        engine: TorchEngine,
        wave: Wave,
        params: SamplingParams,
        rule: StopRule,
        *,
        keep: bool,
        on_complete: OnComplete | None,
    ) -> None:
        self.model, self.decode, self.kept, self.scale = engine.model, engine.decode, engine.memory.kept, engine.scale
        self.params, self.rule, self.keep, self.on_complete, self.version = (
            params,
            rule,
            keep,
            on_complete,
            engine.version,
        )
        self.scheduler = Scheduler(wave)
        self.trunk_kv, self.own_kv = engine.memory.seats(
            wave.num_trunks, wave.trunk_length, wave.num_rows, wave.row_length
        )
        self.prefill_tokens = self.decoded_tokens = 0

    def turn(self) -> None:
        """One token for every seated row, and for every place on a trunk that is opened."""
        copies, rows = self.scheduler.seat_rows(), list(self.scheduler.rows)
        self.own_kv.move(copies, used=max((len(row.token_ids) for row in rows), default=0))
        opened, new_trunks, moves = self.scheduler.open_rows()
        self.trunk_kv.move(moves, used=self.trunk_kv.length)
        self._fill(new_trunks)
        if rows or opened:  # the last rows may just have given up their seats
            sources_N, uniforms_N = self._uniforms(rows + opened)  # before the forward, which they need not wait for
            logits_SV = self._forward(rows, opened)
            self._extend(rows + opened, *sample(logits_SV, sources_N, uniforms_N, self.params))
            self.decoded_tokens += len(rows) + len(opened)

    def _uniforms(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """For each branch its row's number in the batch and what it is drawn with."""
        sources = [i for i, row in enumerate(rows) for _ in row.branches]
        seeds = [branch.seed for row in rows for branch in row.branches]
        indices = [row.length - branch.prefix_length for row in rows for branch in row.branches]
        sources_N, seeds_N, indices_N = self.model.ints([sources, seeds, indices])
        return sources_N, draw_uniforms(seeds_N, indices_N)

    def _forward(self, rows: Sequence[Row], opened: Sequence[Row]) -> torch.Tensor:
        every = [*rows, *opened]
        lengths, seats = [row.prefix_length for row in every], [row.trunk.seat for row in every]
        own_lengths = [len(row.token_ids) - 1 for row in rows]
        batch = DecodeBatch(self.trunk_kv, self.own_kv, seats, lengths, own_lengths, self.scale)
        return self.decode([row.last_token for row in every], [row.length - 1 for row in every], batch)

    def _extend(self, rows: Sequence[Row], tokens_N: torch.Tensor, logprobs_N: torch.Tensor) -> None:
        tokens, logprobs, start = tokens_N.tolist(), logprobs_N.tolist(), 0
        check_drawn(logprobs, self.version)
        for row in rows:
            end = start + len(row.branches)
            for extended in extend(row, tokens[start:end], logprobs[start:end]):
                self._finish(extended, after=row)
                self.scheduler.place(extended, after=row)
            start = end

    def _finish(self, row: Row, after: Row) -> None:
        """Takes out the branches that have ended; `after` is the row that this one has come from by one token."""
        if row.length < row.first_end and not self.rule.may_end(row.last_token):
            return
        done = []
        for branch in row.branches:
            token_ids = row.tokens_from(branch.prefix_length)
            branch.finish_reason = self.rule.reason(branch.request, token_ids, branch.budget)
            if branch.finish_reason:
                branch.token_ids, branch.logprobs = token_ids, row.logprobs_from(branch.prefix_length)
                done.append(branch)
                if self.on_complete:
                    self.on_complete(branch.index, branch.completion(self.version))
        if done and self.keep:
            self._keep(row, after)
        row.drop(done)

    def _keep(self, row: Row, after: Row) -> None:
        """The whole sequence for later calls, but for its last token, which was never computed."""
        tokens = (*row.trunk.token_ids[: row.prefix_length], *row.token_ids)[:-1]
        prefix_kv = self.trunk_kv.read(after.trunk.seat, after.prefix_length)
        own_kv = self.own_kv.read(max(after.seat, 0), len(tokens) - after.prefix_length)
        self.kept.add(tokens, torch.cat((prefix_kv, own_kv), dim=3))

    def _fill(self, trunks: Iterable[Trunk]) -> None:
        """Gives newly seated trunks their keys and values: what is kept is copied, the rest computed."""
        jobs: list[tuple[int, int, Trunk]] = []  # cached tokens, new tokens
        for trunk in trunks:
            kept = self.kept.longest_match(trunk.token_ids)
            cached = 0
            if kept is not None:
                cached = kept.shape[3]
                self.trunk_kv.write(trunk.seat, kept)
            if cached < len(trunk.token_ids):
                jobs.append((cached, len(trunk.token_ids) - cached, trunk))
        jobs.sort(key=lambda job: job[:2])
        while jobs:
            batch = take_until(jobs, PREFILL_TOKENS)
            self._prefill(batch)

    def _prefill(self, jobs: Sequence[tuple[int, int, Trunk]]) -> None:
        tokens = [token for cached, _, trunk in jobs for token in trunk.token_ids[cached:]]
        positions = [position for cached, new, _ in jobs for position in range(cached, cached + new)]
        groups = [
            PrefillGroup([trunk.seat for _, _, trunk in members], cached, new)
            for (cached, new), members in groupby(jobs, key=lambda job: job[:2])
        ]
        attend = PrefillAttention(self.trunk_kv, groups, self.scale)
        self.model.hidden(self.model.ints(tokens), self.model.ints(positions), attend)
        self.prefill_tokens += len(tokens)


def take_until(jobs: list[tuple[int, int, Trunk]], max_tokens: int) -> list[tuple[int, int, Trunk]]:
    """Removes the first jobs, as many as have at most this many new tokens, but at least one."""
    taken = [jobs.pop(0)]
    tokens = taken[0][1]
    while jobs and tokens + jobs[0][1] <= max_tokens:
        taken.append(jobs.pop(0))
        tokens += taken[-1][1]
    return taken
