from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from vineppo import models
from vineppo.batch import Batch
from vineppo.models import (
    TinyModelConfig,
    load_model,
    load_tokenizer,
    make_symbol_tokenizer,
    make_tiny_model,
    save_model,
    token_logprobs,
)
from vineppo.types import UserError

TOKENIZER = make_symbol_tokenizer([*"0123456789", "+1", "+", " a", "\n"])
TINY = TinyModelConfig(num_layers=2, hidden_size=16, num_heads=2, ffn_size=24, context_size=64)


def make_inputs(vocab_size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    ids_BT, targets_BT = torch.randint(vocab_size, (2, 5, 13), generator=generator)
    lengths_B1 = torch.tensor([[13], [9], [4], [12], [1]])
    attention_BT = (torch.arange(13) < lengths_B1).long()
    action_BT = (torch.rand(5, 13, generator=generator) < 0.6) & attention_BT.bool()
    return ids_BT, attention_BT, targets_BT, action_BT


@pytest.mark.parametrize("family", ["llama", "soft-capped"])
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_log_probs_and_gradients_are_those_of_the_whole_softmax(family, chunk, monkeypatch):
    monkeypatch.setattr(models, "CHUNK_TOKENS", chunk)
    model = make_tiny_model(TOKENIZER, TINY, seed=1).double() if family == "llama" else make_soft_capped()
    ids, attention, targets, action = make_inputs(model.config.vocab_size)
    logits = model(input_ids=ids, attention_mask=attention).logits / 0.7
    expected = logits.log_softmax(-1).gather(2, targets[..., None])[..., 0][action]
    found = token_logprobs(model, Batch(ids, targets, attention, action), temperature=0.7)
    assert torch.allclose(found, expected, atol=1e-12)
    weights = list(model.parameters())
    ours, theirs = (torch.autograd.grad(logprobs.square().sum(), weights) for logprobs in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def make_soft_capped() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, final_logit_softcapping=2.0,
        initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).double().eval()


def test_the_longest_symbol_is_taken_and_every_text_comes_back():
    assert TOKENIZER.tokenize("1+12 a\n") == ["1", "+1", "2", " a", "\n"]
    for text in ("", "0+1 a\n9", "+11+"):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert len(TOKENIZER) == 14 + 3
    assert [TOKENIZER.pad_token, TOKENIZER.bos_token, TOKENIZER.eos_token] == ["<pad>", "<bos>", "<eos>"]


def test_a_seed_alone_decides_the_tiny_model():
    torch.manual_seed(5)
    one = make_tiny_model(TOKENIZER, TINY, seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn), "making a model moved the global generator"
    other, third = (make_tiny_model(TOKENIZER, TINY, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], third["lm_head.weight"])


def test_a_saved_model_opens_in_transformers(tmp_path):
    model = make_tiny_model(TOKENIZER, TINY, seed=1)
    save_model(model, TOKENIZER, tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("1+12") == TOKENIZER.encode("1+12")
    assert load_tokenizer(str(tmp_path)).decode(TOKENIZER.encode("1 a\n")) == "1 a\n"


def test_dropout_is_off(tmp_path):
    model = make_tiny_model(TOKENIZER, TINY, seed=1)
    model.config.attention_dropout = 0.5
    save_model(model, TOKENIZER, tmp_path)
    loaded = load_model(str(tmp_path)).train()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, loaded(ids).logits)


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tokenizer = make_symbol_tokenizer("ab")
    tokenizer.eos_token = None
    save_model(make_tiny_model(TOKENIZER, TINY, seed=1), tokenizer, tmp_path)
    with pytest.raises(UserError, match="no eos token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "nowhere/at/all", "lost.gguf"])
def test_a_missing_model_is_named(name):
    with pytest.raises(UserError, match=name):
        load_model(name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"neither a config.json nor a .gguf file"):
        load_model(str(tmp_path))


def test_a_gguf_file_is_dequantised(tmp_path):
    """Q8_0 holds blocks of 32 numbers as int8 times one half-precision scale: off by at most half a step of a block."""
    model = make_tiny_model(TOKENIZER, TinyModelConfig(num_layers=1, hidden_size=32, num_heads=1, ffn_size=32), seed=3)
    path = tmp_path / "tiny.gguf"
    write_gguf(model, path)
    loaded = load_model(str(path)).state_dict()
    for name, tensor in model.state_dict().items():
        step = tensor.abs().amax() / 127
        assert loaded[name].dtype == torch.float32
        assert (loaded[name] - tensor).abs().max() <= 0.51 * step, name
    assert load_model(str(tmp_path)).config.hidden_size == 32  # the folder that holds it will do


def write_gguf(model, path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = interleave(tensor, config) if "q_proj" in name or "k_proj" in name else tensor.numpy()
        target = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 1:
            writer.add_tensor(target, array.astype(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weight: torch.Tensor, config) -> np.ndarray:
    """GGUF keeps the two halves of each head's rotary pairs next to each other."""
    heads = config.num_attention_heads
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).numpy()


def test_logits_that_are_more_than_the_head_s_output_are_refused(tmp_path):
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, logits_scaling=8.0, initializer_range=0.5,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="granite does something to its logits"):
        load_model(str(tmp_path))


def test_a_generation_config_that_cannot_be_saved_again_does_no_harm(tmp_path):
    model = make_tiny_model(TOKENIZER, TINY, seed=1)
    save_model(model, TOKENIZER, tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": [3, 4]}')
    save_model(load_model(str(tmp_path / "a")), TOKENIZER, tmp_path / "b")
    assert load_model(str(tmp_path / "b")).generation_config.eos_token_id == [3, 4]
