"""How much memory a model takes, known from its config alone: before anything is built that may not fit."""

from __future__ import annotations

from typing import Any

from vineppo.machine.limits import available_memory_bytes
from vineppo.models import TinyModelConfig
from vineppo.types import UserError

LAYER_OVERHEAD = 50_000
"""Bytes of Python objects for each layer, whatever its size: about a dozen modules."""
MOST_COMPRESSED = 32
"""Bytes of a model in fp32 for each in its file: one bit per number."""


def count_parameters(config: Any) -> int:
    """Of the causal language model with this transformers config, from its first two layers: no tensor is made."""
    text = config.get_text_config()
    layers = text.num_hidden_layers
    if layers <= 2:
        return _build_parameters(config, layers)
    one, two = _build_parameters(config, 1), _build_parameters(config, 2)
    return one + (layers - 1) * (two - one)


def count_tiny_parameters(tiny: TinyModelConfig) -> int:
    """Of a model from scratch, without embeddings and head: the task decides on their size."""
    hidden = tiny.hidden_size
    return tiny.num_layers * (4 * hidden**2 + 3 * hidden * tiny.ffn_size + 2 * hidden) + hidden


def model_bytes(num_parameters: int, num_layers: int) -> int:
    """In fp32, with what Python needs for its layers."""
    return 4 * num_parameters + LAYER_OVERHEAD * num_layers


def check_model_fits(config: Any, name: str, file_bytes: int | None = None) -> None:
    """Raises UserError where the weights alone exceed the machine's memory, or what files of this size can hold."""
    try:
        needed = model_bytes(count_parameters(config), config.get_text_config().num_hidden_layers)
    except Exception:  # a family whose layers cannot be left out, or a config that cannot be built: loading will tell
        return
    available = available_memory_bytes()
    if needed > available:
        raise UserError(
            f"model {name}: its weights take {format_bytes(needed)} in fp32, and this process may hold "
            f"{format_bytes(available)}; choose a smaller model"
        )
    if file_bytes is not None and needed > MOST_COMPRESSED * file_bytes + LAYER_OVERHEAD * MOST_COMPRESSED:
        raise UserError(
            f"model {name}: config.json describes {format_bytes(needed)} of weights in fp32, and the files hold "
            f"{format_bytes(file_bytes)}; they do not belong together"
        )


def format_bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:,.0f} TiB"


def _build_parameters(config: Any, layers: int) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    tree = config.to_dict()
    whole = tree.get("num_hidden_layers")
    # What is listed for every layer is listed for those that are left.
    cut = {key: value[:layers] for key, value in tree.items() if isinstance(value, list) and len(value) == whole}
    small = type(config).from_dict({**tree, **cut, "num_hidden_layers": layers})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())
