"""Any causal language model through transformers' `generate`: slow, general, and the same protocol.

Batches are padded on the left. A logits processor draws with the same per-request uniforms as the torch engine and
leaves only the drawn token to `generate`, which is told to be greedy; so a seed means the same in both engines.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vineppo.engine.config import HFEngineConfig
from vineppo.engine.limits import check_requests, context_limit
from vineppo.engine.sampler import as_int64, check_drawn, draw_uniforms, sample
from vineppo.engine.stopping import PartialCompletion, StopRule
from vineppo.machine.runtime import pick_dtype
from vineppo.protocols import OnComplete
from vineppo.types import Completion, Request, SamplingParams, UserError


class HFEngine:
    """Samples with an own copy of a transformers model; nothing is shared between requests.

    `usage` counts generated tokens by purpose.
    """

    Config = HFEngineConfig

    def __init__(
        self,
        config: HFEngineConfig,
        architecture: Any,
        weights: Mapping[str, torch.Tensor],
        tokenizer: Any,
        eos_ids: frozenset[int],
    ) -> None:
        self.config, self.tokenizer, self.eos_ids = config, tokenizer, eos_ids
        self.model = make_model(architecture, weights)
        self.load_weights(weights, version=0)
        check_padding(self.model)
        self.model.to(pick_dtype(config.dtype, self.model.device))
        self.usage: Counter[str] = Counter()

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        """One completion per request, in the order of the requests. Whatever `keep` says, nothing is kept."""
        budgets, context = self._budgets(requests), context_limit(self.model.config)
        rule = StopRule(self.tokenizer, self.eos_ids, params.stop)
        rows = [PartialCompletion(i, *pair) for i, pair in enumerate(zip(requests, budgets, strict=True))]
        for batch in self._batches(rows, context):
            self._generate_batch(batch, params, rule)
            if on_complete:
                for row in batch:
                    on_complete(row.index, row.completion(self.version))
        self.usage[purpose] += sum(len(row.token_ids) for row in rows)
        return [row.completion(self.version) for row in rows]

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raises UserError where `generate` would refuse them; samples nothing."""
        self._budgets(requests)
        StopRule(self.tokenizer, self.eos_ids, params.stop)

    def _budgets(self, requests: Sequence[Request]) -> list[int]:
        vocab_size = self.model.get_input_embeddings().num_embeddings
        return check_requests(requests, vocab_size=vocab_size, context=context_limit(self.model.config))

    @torch.inference_mode()
    def load_weights(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Copies the parameters in place; a tied head may be there or not."""
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise ValueError(f"not this model's parameters: missing {missing}, unexpected {unexpected}")
        self.version = version

    def _batches(self, rows: Sequence[PartialCompletion], context: int | None) -> list[list[PartialCompletion]]:
        """Equal lengths together, so that little is padded. A padded batch must fit in the context as a whole."""
        batches: list[list[PartialCompletion]] = []
        for row in sorted(rows, key=lambda row: (len(row.request.prefix_ids), row.budget)):
            batch = batches[-1] if batches else []
            budget = max([row.budget, *(other.budget for other in batch)])
            fits = context is None or len(row.request.prefix_ids) + budget <= context
            if batch and len(batch) < self.config.max_batch and fits:
                batch.append(row)
            else:
                batches.append([row])
        return batches

    @torch.inference_mode()
    def _generate_batch(self, rows: Sequence[PartialCompletion], params: SamplingParams, rule: StopRule) -> None:
        longest = max(len(row.request.prefix_ids) for row in rows)
        pads = [longest - len(row.request.prefix_ids) for row in rows]
        ids = [[0] * pad + list(row.request.prefix_ids) for pad, row in zip(pads, rows, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        device = self.model.device
        self.model.generate(
            torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max(row.budget for row in rows), pad_token_id=0
            ),
            logits_processor=LogitsProcessorList([SeededDraw(rows, params, rule, self.version)]),
            stopping_criteria=StoppingCriteriaList([RowsDone(rows)]),
        )


def make_model(architecture: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """The architecture's model with numbers of no meaning, where and in the precision that the weights are."""
    like = next(iter(weights.values()))
    with torch.random.fork_rng(devices=[]):  # others' draws are none of its business
        model = AutoModelForCausalLM.from_config(copy.deepcopy(architecture), dtype=like.dtype, trust_remote_code=False)
    # The model's own defaults (temperature, repetition penalty, ...) would be merged into every call.
    model.generation_config = GenerationConfig()
    return model.to(like.device).eval().requires_grad_(False)


@torch.no_grad()
def check_padding(model: Any) -> None:
    """Raises UserError for an architecture that reads padding (RWKV): it would sample by what it is batched with."""
    ids_BT = torch.arange(6, device=model.device)[None] % model.get_input_embeddings().num_embeddings

    def next_logprobs(padding: int) -> torch.Tensor:
        found = model.generate(
            F.pad(ids_BT, (padding, 0)),
            attention_mask=F.pad(torch.ones_like(ids_BT), (padding, 0)),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=1, pad_token_id=0, return_dict_in_generate=True, output_logits=True
            ),
        )
        return found.logits[0].float().log_softmax(-1)

    if not torch.allclose(next_logprobs(0), next_logprobs(3), atol=1e-2):
        raise UserError(
            f'engine.name = "hf" cannot sample from {model.config.model_type}: it reads the padding before shorter '
            "prefixes of a batch as if it were text; choose another architecture"
        )


class SeededDraw(LogitsProcessor):
    """Draws each row's next token and leaves it as the only possible one."""

    def __init__(self, rows: Sequence[PartialCompletion], params: SamplingParams, rule: StopRule, version: int) -> None:
        self.rows, self.params, self.rule, self.version = rows, params, rule, version

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        device = scores.device
        seeds_B = torch.tensor([as_int64(row.request.seed) for row in self.rows], device=device)
        indices_B = torch.tensor([len(row.token_ids) for row in self.rows], device=device)
        rows_B = torch.arange(len(self.rows), device=device)
        logits_BV = scores.float().clone()
        tokens_B, logprobs_B, alternatives = sample(logits_BV, rows_B, draw_uniforms(seeds_B, indices_B), self.params)
        check_drawn(logprobs_B.tolist(), self.version)
        found = alternatives or [None] * len(self.rows)
        for row, token, logprob, others in zip(self.rows, tokens_B.tolist(), logprobs_B.tolist(), found, strict=True):
            if row.finish_reason is None:
                row.add(token, logprob, self.rule, others)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B[:, None], 0.0)  # type: ignore[return-value]


class RowsDone(StoppingCriteria):
    """Tells `generate` which rows have ended; it pads them until all have."""

    def __init__(self, rows: Sequence[PartialCompletion]) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        done = [row.finish_reason is not None for row in self.rows]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]
