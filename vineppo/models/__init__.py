"""Models: where the first policy comes from, as a recipe's [model] section says it. Without torch."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import Field, model_validator

from vineppo.config import Config


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


class ModelConfig(Config):
    """An existing model, or random weights over the embedded task's characters."""

    name: str | None = None
    """Hugging Face hub name, local folder, GGUF file, or a finished run's folder: its last checkpoint."""
    from_scratch: TinyModelConfig | None = None
    checksum: str | None = None
    """Of a local model's weights: others are refused. A run writes it into its own recipe.toml."""

    @model_validator(mode="after")
    def exactly_one(self) -> ModelConfig:
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give either name (a hub name, folder or GGUF file) or a [model.from_scratch] section")
        return self


class RewardModelConfig(Config):
    path: str
    """Folder or hub name of a sequence or token classifier with its tokenizer, or the folder of a `vineppo prm` run."""
    microbatch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass."""


def longest_prompt(model: Any) -> int:
    """In tokens, with room for one more."""
    return (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - 1
