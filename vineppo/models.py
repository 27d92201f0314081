"""Hugging Face causal language models in and out, the tiny model of the embedded task, and memory-lean log-probs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

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


def load_tokenizer(name: str) -> Any:
    """From a hub name, a folder, or a GGUF file (or a folder that holds one). Raises UserError if it has no eos."""
    tokenizer = _from_pretrained(AutoTokenizer, name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer has no eos token, so no response could end; set one and save it")
    return tokenizer


def load_model(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """From a hub name, a folder, or a GGUF file (dequantised); without dropout, so that scores repeat exactly."""
    options: dict[str, Any] = {"dtype": dtype}
    if gguf_file(name) is not None:
        _require_gguf()
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    model = _from_pretrained(AutoModelForCausalLM, name, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for rate in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    if model.generation_config is not None:  # its sampling defaults are not used, and some cannot be saved again
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{key: getattr(model.generation_config, key) for key in kept})
    model = model.to(device).eval()
    check_logprobs(model, name)
    return model


@torch.no_grad()
def check_logprobs(model: Any, name: str) -> None:
    """Raises UserError for an architecture whose logits are more than its head's output (Granite, Cohere, ...)."""
    ids_BT = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    ones_BT = torch.ones_like(ids_BT)
    ours_N = token_logprobs(model, ids_BT, ones_BT, ids_BT, ones_BT.bool(), temperature=1.0)
    theirs_BTV = model(input_ids=ids_BT, attention_mask=ones_BT, use_cache=False).logits.float().log_softmax(-1)
    if not torch.allclose(ours_N.float(), theirs_BTV.gather(2, ids_BT[..., None]).flatten(), atol=1e-2):
        raise UserError(
            f"model {name}: {model.config.model_type} does something to its logits after the head that training here "
            "does not know; choose another architecture"
        )


def save_model(model: Any, tokenizer: Any, folder: Path | str) -> None:
    """A safetensors folder that `AutoModelForCausalLM.from_pretrained` opens."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def gguf_file(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    return files[0] if files else None


def _from_pretrained(auto: Any, name: str, **options: Any) -> Any:
    gguf = gguf_file(name)
    looks_local = name.startswith((".", "/", "~")) or gguf is not None or name.count("/") > 1
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if looks_local and not Path(name).exists():
        raise UserError(f"model {name}: no such file or folder")
    if Path(name).is_dir() and gguf is None and not (Path(name) / "config.json").exists():
        raise UserError(f"model {name}: the folder has neither a config.json nor a .gguf file")
    try:
        if gguf is not None:
            _require_gguf()
            return auto.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
        return auto.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {name}: cannot be loaded from a folder or the hub: {reason}") from None


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError('GGUF files need an extra: pip install "vineppo[gguf]"') from None


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
        return LlamaForCausalLM(architecture).eval()


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


def token_logprobs(
    model: Any,
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor,
    target_ids_BT: torch.Tensor,
    action_mask_BT: torch.Tensor,
    *,
    temperature: float,
) -> torch.Tensor:
    """log softmax(logits / temperature) of the targets under `action_mask_BT`, flattened to [N], in fp32 or wider.

    Hidden states are cut down to the action tokens before the head, and the head runs over chunks of tokens that
    are computed again in the backward pass: [B, T, V] never exists.
    """
    output = model.base_model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False)
    hidden_NH = output.last_hidden_state[action_mask_BT]
    targets_N = target_ids_BT[action_mask_BT]
    chunks = zip(hidden_NH.split(CHUNK_TOKENS), targets_N.split(CHUNK_TOKENS), strict=True)
    head = model.get_output_embeddings()
    soft_cap = getattr(model.config, "final_logit_softcapping", None)
    logprobs = [
        checkpoint(_head_logprobs, head, hidden, targets, temperature, soft_cap, use_reentrant=False)
        for hidden, targets in chunks
    ]
    return torch.cat(logprobs)  # type: ignore[arg-type]


def _head_logprobs(
    head: Any, hidden_NH: torch.Tensor, targets_N: torch.Tensor, temperature: float, soft_cap: float | None
) -> torch.Tensor:
    logits_NV = head(hidden_NH)
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    if soft_cap is not None:
        logits_NV = torch.tanh(logits_NV / soft_cap) * soft_cap
    return -F.cross_entropy(logits_NV / temperature, targets_N, reduction="none")
