"""The forward pass of the Llama family: Llama, Mistral, Qwen2, Qwen3. Knows weights, not caches.

N tokens (of any sequences, in any order), E hidden size, H query heads, K key/value heads, D head size, F ffn size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vineppo.engine.llama.attention import Attend
from vineppo.engine.llama.kernels.plain import Kernels
from vineppo.types import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # frequencies that do not depend on the sequence's length

# Fused name -> the parameters it joins, row below row, under model.layers.{i}.
FUSED = {
    "input_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "out": ("self_attn.o_proj",),
    "ffn_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class Llama:
    """Own copy of a transformers model's weights, with q/k/v and gate/up fused into one product each."""

    def __init__(self, config: Any, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, kernels: Kernels) -> None:
        check_supported(config)
        self.kernels, self.dtype, self.device = kernels, dtype, next(iter(weights.values())).device
        self.num_layers, self.num_heads = config.num_hidden_layers, config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads or config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps, self.tied = config.rms_norm_eps, config.tie_word_embeddings
        self.activation = config.hidden_act
        rotary = LlamaRotaryEmbedding(config)  # all families'; theirs differ in nothing but the class's name
        self.frequencies_D = rotary.inv_freq.to(self.device, torch.float32)
        self.rope_scale = rotary.attention_scaling
        self.weights = {
            name: self._own(name, join(parts)) for name, parts in fuse(weights, self.num_layers, self.tied).items()
        }
        if self.tied and not self.weights["head"].is_mkldnn:
            self.weights["head"] = self.weights["embed"]  # one copy of what is one matrix
        self.vocab_size = len(self.weights["embed"])

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copies these parameters (transformers' names) over the own ones."""
        fused = fuse(weights, self.num_layers, self.tied)
        if fused.keys() != self.weights.keys():
            raise ValueError(
                f"not this model's parameters; they differ in {sorted(fused.keys() ^ self.weights.keys())}"
            )
        for name, parts in fused.items():
            tensor = join(parts)  # one at a time: all together are as large as the model
            if tensor.shape != self.weights[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(self.weights[name].shape)}")
            if self.weights[name].is_mkldnn:
                self.weights[name] = self._own(name, tensor)
            else:
                self.weights[name].copy_(tensor.detach())

    def _own(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device; what is multiplied is packed where that makes products faster."""
        tensor = tensor.detach()
        if name != "embed" and tensor.ndim == 2 and can_pack(self.device, self.dtype):
            return torch.ops.mkldnn._reorder_linear_weight(tensor.to(self.device, self.dtype), None)
        return tensor.to(self.device, self.dtype, copy=True)

    def hidden(self, token_ids_N: torch.Tensor, positions_N: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Final hidden states, before the last norm."""
        w = self.weights
        cos_N1D, sin_N1D = self._rotation(positions_N)
        x_NE = w["embed"][token_ids_N]
        for i in range(self.num_layers):
            h_NE = self._norm(x_NE, w[f"{i}.input_norm"])
            q_NHD, k_NKD, v_NKD = self._qkv(i, h_NE, cos_N1D, sin_N1D)
            o_NHD = attend(i, q_NHD, k_NKD, v_NKD)
            x_NE = x_NE.add_(self._linear(f"{i}.out", o_NHD.flatten(1)))
            h_NE = self._norm(x_NE, w[f"{i}.ffn_norm"])
            ffn_NF = self.kernels.gated(self._linear(f"{i}.gate_up", h_NE), self.activation)
            x_NE = x_NE.add_(self._linear(f"{i}.down", ffn_NF))
        return x_NE

    def logits(self, hidden_NE: torch.Tensor) -> torch.Tensor:
        return multiply(self._norm(hidden_NE, self.weights["norm"]), self.weights["head"])

    def ints(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _qkv(
        self, i: int, h_NE: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        H, K = self.num_heads, self.num_kv_heads
        qkv_NJD = self._linear(f"{i}.qkv", h_NE).unflatten(-1, (H + 2 * K, self.head_dim))
        qk_NJD, v_NKD = qkv_NJD.split((H + K, K), dim=1)
        if f"{i}.q_norm" in self.weights:  # Qwen3
            q_NHD, k_NKD = qk_NJD.split((H, K), dim=1)
            qk_NJD = torch.cat(
                (self._norm(q_NHD, self.weights[f"{i}.q_norm"]), self._norm(k_NKD, self.weights[f"{i}.k_norm"])), dim=1
            )
        q_NHD, k_NKD = self.kernels.rotate(qk_NJD, cos_N1D, sin_N1D).split((H, K), dim=1)
        return q_NHD, k_NKD, v_NKD

    def _rotation(self, positions_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, D here being half of the head size."""
        angles_N1D = (positions_N[:, None].float() * self.frequencies_D)[:, None]
        return (angles_N1D.cos() * self.rope_scale).to(self.dtype), (angles_N1D.sin() * self.rope_scale).to(self.dtype)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.kernels.rms_norm(x, weight, self.eps)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, self.weights[name], self.weights.get(f"{name}.bias"))


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN may keep weights in its own layout: at 36 to 252 rows its products then take 5 to 35 % less time
    than those of a plain matrix, which is laid out anew in every product (Zen 3, fp32)."""
    return device.type == "cpu" and dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def check_supported(config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise UserError(
            f'engine.name = "torch" knows {", ".join(FAMILIES)}, not {config.model_type!r}; set engine.name = "hf"'
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE:
        raise UserError(f'engine.name = "torch" does not know RoPE scaling {rope!r}; set engine.name = "hf"')


def sliding_window(config: Any) -> int | None:
    """Tokens that a position can see, where some layer sees fewer than all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)  # Mistral has none: all its layers slide
    return window if kinds is None or "sliding_attention" in kinds else None


def fuse(weights: Mapping[str, torch.Tensor], num_layers: int, tied: bool) -> dict[str, list[torch.Tensor]]:
    """What is joined under the engine's names, from transformers' ones. A tied head may be there or not."""
    try:
        fused = {"embed": [weights["model.embed_tokens.weight"]], "norm": [weights["model.norm.weight"]]}
        fused["head"] = fused["embed"] if tied else [weights["lm_head.weight"]]
        for i in range(num_layers):
            for name, parts in FUSED.items():
                paths = [f"model.layers.{i}.{part}" for part in parts]
                if name in ("q_norm", "k_norm") and f"{paths[0]}.weight" not in weights:
                    continue
                fused[f"{i}.{name}"] = [weights[f"{path}.weight"] for path in paths]
                if f"{paths[0]}.bias" in weights:
                    fused[f"{i}.{name}.bias"] = [weights[f"{path}.bias"] for path in paths]
    except KeyError as error:
        raise ValueError(f"the weights lack the parameter {error}") from None
    return fused


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
