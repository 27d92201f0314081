from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from vineppo.batch import Batch
from vineppo.models import TinyModelConfig
from vineppo.models import logprobs as models
from vineppo.models.loading import load_model, load_tokenizer
from vineppo.models.logprobs import token_logprobs
from vineppo.models.make import make_symbol_tokenizer, make_tiny_model, save_model

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
