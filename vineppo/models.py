"""The tiny model of the embedded task, critics made from policies, and memory-lean log-probs of any of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForTokenClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vineppo.batch import Batch
from vineppo.config import Config
from vineppo.types import UserError

CHUNK_TOKENS = 1024
"""Rows of logits that exist at once; at a vocabulary of 49,152 that is 200 MB in fp32."""


class TinyModelConfig(Config):
    num_layers: int = Field(default=4, ge=1)
    hidden_size: int = Field(default=128, ge=8)
    num_heads: int = Field(default=4, ge=1)
    ffn_size: int = Field(default=384, ge=8)
    context_size: int = Field(default=512, ge=8)

    @model_validator(mode="after")
    def check(self) -> TinyModelConfig:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
            )
        return self


def drop_sampling_defaults(model: Any) -> None:
    """They are not used, and some cannot be saved again."""
    if model.generation_config is not None:
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{key: getattr(model.generation_config, key) for key in kept})


def remove_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for rate in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def save_model(model: Any, tokenizer: Any, folder: Path | str) -> None:
    """A safetensors folder that `AutoModelForCausalLM.from_pretrained` opens."""
    model.save_pretrained(folder)
    for key in ("is_local", "local_files_only"):  # where it came from, which is another place once a run was resumed
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def make_critic_model(policy: Any, seed: int) -> Any:
    """The policy's backbone, copied, with a fresh linear head of one output: weights N(0, 1/(H + 1)), bias 0.

    It is transformers' token classifier with one label, so that a saved one opens with `load_critic_model` of
    vineppo.loading or with AutoModelForTokenClassification. Raises UserError for architectures that have none.
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    config.classifier_dropout = 0.0
    try:
        critic: Any = AutoModelForTokenClassification.from_config(config)
    except ValueError:
        raise UserError(f"transformers has no token classifier of {config.model_type}, which a critic needs") from None
    critic.base_model.load_state_dict(policy.base_model.state_dict())
    head = value_head(critic)
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5)
        if head.bias is not None:
            head.bias.zero_()
    remove_dropout(critic)
    return critic.to(device=policy.device, dtype=policy.dtype).eval()


def value_head(critic: Any) -> torch.nn.Linear:
    backbone = set(critic.base_model.modules())
    return next(m for m in critic.modules() if isinstance(m, torch.nn.Linear) and m not in backbone)


def token_values(critic: Any, batch: Batch) -> torch.Tensor:
    """V of the state before every action token, [N], in fp32 or wider."""
    output = critic(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    values_N = output.logits[..., 0][batch.action_mask_BT]
    return values_N if values_N.dtype == torch.float64 else values_N.float()


def make_tiny_model(tokenizer: Any, config: TinyModelConfig, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights decided by `seed` alone."""
    architecture = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.context_size,
        tie_word_embeddings=False,
        # LlamaConfig's 0.02 is for wide models; at 128 attention stays flat and copying is learnt far later.
        initializer_range=config.hidden_size**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = LlamaForCausalLM(architecture).eval()
    drop_sampling_defaults(model)
    return model


def make_symbol_tokenizer(symbols: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per symbol, the longest that fits first, then <pad>, <bos>, <eos>; decode(encode(text)) == text.

    Text that is not made of symbols cannot be encoded.
    """
    ordered = sorted(set(symbols), key=lambda symbol: (-len(symbol), symbol))
    vocabulary = {symbol: index for index, symbol in enumerate([*ordered, "<pad>", "<bos>", "<eos>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    any_symbol = Regex("|".join(map(re.escape, ordered)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(any_symbol, "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def token_logprobs(model: Any, batch: Batch, *, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature) of the targets under the batch's action mask, [N], in fp32 or wider."""
    return read_tokens(model, batch, temperature=temperature)[:, 0]


def read_tokens(
    model: Any,
    batch: Batch,
    *,
    temperature: float,
    entropy: bool = False,
    nucleus_floor: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:  # [N, 3]
    """Log-prob, entropy and log of the kept mass of every action token at `temperature`, in fp32 or wider.

    Entropy and mass are 0 where not asked for. `nucleus_floor` maps probs_NV to the smallest probability that top_p
    and top_k keep; the kept mass then is that of all tokens above it and of the target, whatever its own.

    Hidden states are cut down to the action tokens before the head, and the head runs over chunks of tokens that
    are computed again in the backward pass: [B, T, V] never exists.
    """
    output = model.base_model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    hidden_NH = output.last_hidden_state[batch.action_mask_BT]
    targets_N = batch.target_ids_BT[batch.action_mask_BT]
    chunks = zip(hidden_NH.split(CHUNK_TOKENS), targets_N.split(CHUNK_TOKENS), strict=True)
    head = model.get_output_embeddings()
    soft_cap = getattr(model.config, "final_logit_softcapping", None)

    def read(hidden_NH: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        logits_NV = head(hidden_NH)
        logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        if soft_cap is not None:
            logits_NV = torch.tanh(logits_NV / soft_cap) * soft_cap
        logits_NV = logits_NV / temperature
        logprobs_N = -F.cross_entropy(logits_NV, targets_N, reduction="none")
        nothing_N = torch.zeros_like(logprobs_N)
        entropies_N = compute_entropy(logits_NV) if entropy else nothing_N
        masses_N = kept_logmass(logits_NV, targets_N, nucleus_floor) if nucleus_floor else nothing_N
        return torch.stack((logprobs_N, entropies_N, masses_N), dim=1)

    return torch.cat([checkpoint(read, hidden, targets, use_reentrant=False) for hidden, targets in chunks])  # type: ignore[arg-type]


def compute_entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """In nats, [N]."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def kept_logmass(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, nucleus_floor: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Log of the probability that top_p and top_k keep, [N]; which tokens are kept is a constant to the gradient."""
    with torch.no_grad():
        probs_NV = logits_NV.softmax(-1)
        kept_NV = probs_NV >= nucleus_floor(probs_NV)[:, None]
        kept_NV.scatter_(1, targets_N[:, None], True)
    return logits_NV.masked_fill(~kept_NV, -torch.inf).logsumexp(-1) - logits_NV.logsumexp(-1)
