"""The in-process engine: PyTorch only, for the Llama family, with continuous batching and shared prefixes.

The loop is RunningBatch.run: the scheduler plans, one forward computes and draws, the scheduler takes what was drawn.
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
from vineppo.engine.llama.batch_plan import BatchPlan, plan_batches
from vineppo.engine.llama.kernels.choose import make_decode, make_kernels, pick_kernels
from vineppo.engine.llama.kv_cache import KVMemory
from vineppo.engine.llama.model import Llama, sliding_window
from vineppo.engine.llama.scheduler import Finished, ForwardPlan, Scheduler
from vineppo.engine.llama.sequences import Branch, Fact, Trunk
from vineppo.engine.sampler import check_drawn, draw_uniforms, sample
from vineppo.engine.stopping import StopRule
from vineppo.machine.runtime import pick_dtype
from vineppo.protocols import OnComplete
from vineppo.types import Completion, Request, SamplingParams, UserError

PREFILL_TOKENS = 4096  # new prefix tokens in one forward; bounds its activations, and products gain nothing beyond


class TorchEngine:
    """Samples continuations of token-id prefixes; every distinct prefix is computed once.

    Counts, of all calls:
        usage           generated tokens by purpose
        prefill_tokens  prefix tokens that were computed
        reused_tokens   prefix tokens that were not: shared within a call, or kept from an earlier one
        decoded_tokens  forwards of one token, one for each distinct sequence that something was drawn after
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
        plans = plan_batches(
            branches,
            max_batch=self.config.max_batch,
            slot_tokens=self.memory.slot_tokens,
            max_kv_tokens=self.memory.max_tokens,
        )
        rule = StopRule(self.tokenizer, self.eos_ids, params.stop)
        for plan in plans:
            self._complete(RunningBatch(self, plan, params, rule, keep=keep, on_complete=on_complete))
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

    def _complete(self, batch: RunningBatch) -> None:
        """A batch holds on to its slots, so it must be gone before the next one lays out others."""
        batch.run()
        self.prefill_tokens += batch.prefill_tokens
        self.decoded_tokens += batch.decoded_tokens
        self.reused_tokens -= batch.prefill_tokens

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


class RunningBatch:
    """One batch, decoded from its first token to its last."""

    def __init__(
        self,
        engine: TorchEngine,
        plan: BatchPlan,
        params: SamplingParams,
        rule: StopRule,
        *,
        keep: bool,
        on_complete: OnComplete | None,
    ) -> None:
        self.model, self.decode, self.kept, self.scale = engine.model, engine.decode, engine.memory.kept, engine.scale
        self.params, self.keep, self.on_complete, self.version = params, keep, on_complete, engine.version
        self.scheduler = Scheduler(plan, rule)
        self.trunk_kv, self.own_kv = engine.memory.lay_out(
            plan.num_trunks, plan.trunk_length, plan.num_own, plan.own_length
        )
        self.prefill_tokens = self.decoded_tokens = 0

    def run(self) -> None:
        while self.scheduler.busy:
            plan = self.scheduler.plan()
            tokens, facts = self._forward(plan)
            self._hand_out(self.scheduler.advance(plan, tokens, facts))

    def _forward(self, plan: ForwardPlan) -> tuple[list[int], list[Fact]]:
        """A token for every branch of every sequence of the plan, and what is known of it."""
        self.own_kv.move(plan.own_moves, used=max((len(s.token_ids) for s in plan.off_trunk), default=0))
        self.trunk_kv.move(plan.trunk_moves, used=self.trunk_kv.length)
        self._fill(plan.new_trunks)
        sources_N, uniforms_N = self._uniforms(plan)  # before the forward, which they need not wait for
        tokens_N, logprobs_N, alternatives = sample(self._logits(plan), sources_N, uniforms_N, self.params)
        tokens, logprobs = tokens_N.tolist(), logprobs_N.tolist()
        check_drawn(logprobs, self.version)
        self.decoded_tokens += len(plan.sequences)
        found = alternatives or [None] * len(plan.sequences)
        shared = [others for others, s in zip(found, plan.sequences, strict=True) for _ in s.branches]
        return tokens, list(zip(logprobs, shared, strict=True))

    def _uniforms(self, plan: ForwardPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """For each branch its sequence's number in the plan and what it is drawn with."""
        pairs = [(i, s, branch) for i, s in enumerate(plan.sequences) for branch in s.branches]
        sources = [i for i, _, _ in pairs]
        seeds = [branch.seed for _, _, branch in pairs]
        indices = [s.length - branch.prefix_length for _, s, branch in pairs]
        sources_N, seeds_N, indices_N = self.model.ints([sources, seeds, indices])
        return sources_N, draw_uniforms(seeds_N, indices_N)

    def _logits(self, plan: ForwardPlan) -> torch.Tensor:
        every = plan.sequences
        lengths, slots = [s.prefix_length for s in every], [s.trunk.slot for s in every]
        own_lengths = [len(s.token_ids) - 1 for s in plan.off_trunk]
        batch = DecodeBatch(self.trunk_kv, self.own_kv, slots, lengths, own_lengths, self.scale)
        return self.decode([s.last_token for s in every], [s.length - 1 for s in every], batch)

    def _hand_out(self, finished: Iterable[Finished]) -> None:
        for branches, sequence, before in finished:
            if self.on_complete:
                for branch in branches:
                    self.on_complete(branch.index, branch.completion(self.version))
            if self.keep:
                tokens = sequence.tokens_from(0)[:-1]  # the last one was never computed
                prefix_kv = self.trunk_kv.read(before.trunk.slot, before.prefix_length)
                own_kv = self.own_kv.read(max(before.slot, 0), len(tokens) - before.prefix_length)
                self.kept.add(tokens, torch.cat((prefix_kv, own_kv), dim=3))

    def _fill(self, trunks: Iterable[Trunk]) -> None:
        """Gives new trunks their keys and values: what is kept is copied, the rest computed."""
        jobs: list[tuple[int, int, Trunk]] = []  # cached tokens, new tokens
        for trunk in trunks:
            kept = self.kept.longest_match(trunk.token_ids)
            cached = 0
            if kept is not None:
                cached = kept.shape[3]
                self.trunk_kv.write(trunk.slot, kept)
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
            PrefillGroup([trunk.slot for _, _, trunk in members], cached, new)
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
