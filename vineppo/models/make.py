"""The tiny model of the embedded task with its tokenizer, critics made from policies, and saving."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vineppo.models import TinyModelConfig
from vineppo.types import UserError


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


def make_critic_model(policy: Any, seed: int) -> Any:
    """The policy's backbone, copied, with a fresh linear head of one output: weights N(0, 1/(H + 1)), bias 0.

    It is transformers' token classifier with one label, so that a saved one opens with `load_critic_model` of
    vineppo.models.loading or with AutoModelForTokenClassification. Raises UserError for architectures that have none.
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


def remove_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for rate in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def drop_sampling_defaults(model: Any) -> None:
    """They are not used, and some cannot be saved again."""
    if model.generation_config is not None:
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{key: getattr(model.generation_config, key) for key in kept})


def save_model(model: Any, tokenizer: Any, folder: Path | str) -> None:
    """A safetensors folder that `AutoModelForCausalLM.from_pretrained` opens."""
    model.save_pretrained(folder)
    for key in ("is_local", "local_files_only"):  # where it came from, which is another place once a run was resumed
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)
