"""Tiny random models of every family, and both engines over them. No mocks: real transformers models."""

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from vineppo.engine import ENGINES
from vineppo.engine.llama.kernels.native import why_not_native
from vineppo.engine.stopping import find_eos_ids
from vineppo.models.make import make_symbol_tokenizer
from vineppo.types import Request

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .\n"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform, so that greedy choices are no ties
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=4),
    "llama-gqa-tied": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "llama3-rope": LlamaConfig(**SIZES, num_key_value_heads=1, rope_parameters=LLAMA3),
    "llama-linear-rope": LlamaConfig(
        **SIZES, num_key_value_heads=2, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "mistral-head-dim": MistralConfig(**SIZES, num_key_value_heads=2, head_dim=16),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3-tied": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
    "qwen3-biases": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, attention_bias=True),
}
OTHERS = {
    "gpt2": GPT2Config(
        vocab_size=64, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None,
        initializer_range=0.3,
    ),
    "gpt-neox": GPTNeoXConfig(**SIZES),
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    return make_symbol_tokenizer(ALPHABET)  # 42 tokens, fewer than the models' 64


@pytest.fixture(scope="session")
def make_model():
    """A fresh model of a family; biases and norms are randomised, as transformers begins with zeros and ones."""

    def make(name, seed=0, **sizes):
        torch.manual_seed(seed)
        config = (FAMILIES | OTHERS)[name]
        model = AutoModelForCausalLM.from_config(type(config)(**config.to_dict() | sizes)).eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "bias" in path or "norm" in path or ".ln_" in path:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    return make


@pytest.fixture(scope="session")
def make_engine(make_model, tokenizer):
    """By name; "native" and "torch" are the torch engine with kernels in C++ and in PyTorch. Without `eos` nothing ends
    a text but its length and stop strings."""

    def make(name="torch", model="llama-gqa-tied", eos=False, words=tokenizer, **options):
        chosen = make_model(model) if isinstance(model, str) else model
        if name in ("native", "torch"):
            if name == "native" and (reason := why_not_native(torch.float32, chosen.device)):
                pytest.skip(reason)
            name, options = "torch", {"kernels": name, **options}
        config = ENGINES[name].Config(dtype="float32", **options)
        eos_ids = find_eos_ids(chosen, words) if eos else frozenset()
        return ENGINES[name](config, chosen.config, chosen.state_dict(), words, eos_ids)

    return make


@pytest.fixture(scope="session")
def make_requests():
    """Requests with random prefixes and budgets; some prefixes repeat or extend others."""

    def make(n, seed=0, max_prefix=30, max_new=20):
        rng = random.Random(seed)
        prefixes: list[tuple[int, ...]] = [(1,)]
        for _ in range(n // 3):
            base = rng.choice(prefixes)[: max_prefix // 2] if rng.random() < 0.5 else ()
            tail = tuple(rng.randrange(64) for _ in range(rng.randint(1, max_prefix // 2)))
            prefixes.append(base + tail)
        return [Request(rng.choice(prefixes), rng.randint(1, max_new), rng.getrandbits(63)) for _ in range(n)]

    return make
