"""Reward models as transformers saves them: a random tiny Llama under a head of one or two classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from coin_walk import TOKENIZER
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

KINDS: dict[str, Any] = {"token": LlamaForTokenClassification, "sequence": LlamaForSequenceClassification}


def make_config(tokenizer: Any = TOKENIZER, **changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}
    return LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **(sizes | heads | changes))


def save_classifier(folder: Path, kind: str = "token", *, tokenizer: Any = TOKENIZER, **changes: Any) -> Any:
    """The model, which also lies in the folder, with its tokenizer."""
    torch.manual_seed(7)
    model = KINDS.get(kind, LlamaForCausalLM)(make_config(tokenizer, **changes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
