"""A reward model says of every prefix what transformers says of it alone; what is none is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from coin_walk import TOKENIZER
from tiny_critic import make_responses
from tiny_reward_model import save_classifier
from transformers import BertConfig, BertForTokenClassification

from vineppo.models import RewardModelConfig
from vineppo.models.make import make_symbol_tokenizer
from vineppo.models.reward_model import load_reward_model
from vineppo.types import Problem, UserError

RESPONSES = make_responses(9)


def load(folder: Path, **options: Any):
    return load_reward_model(RewardModelConfig(path=str(folder), **options))


def by_transformers(model: Any, token_ids: tuple[int, ...]) -> float:
    """Of one text, alone: what a token classifier says at its last token, or a sequence classifier of all of it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits
    logits_C = logits[0, -1] if logits.ndim == 3 else logits[0]
    return (logits_C.sigmoid() if len(logits_C) == 1 else logits_C.softmax(-1))[-1].item()


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_one_forward_reads_every_prefix_as_transformers_reads_it_alone(tmp_path, kind, num_labels):
    model = save_classifier(tmp_path, kind, num_labels=num_labels)
    ours = load(tmp_path).values(RESPONSES)
    for (prompt, response), values in zip(RESPONSES, ours, strict=True):
        prefixes = [prompt + response[:t] for t in range(len(response) + 1)]
        # Its own pooling would pass over a token that pads, and say what it says of the text before it.
        read = [(v, p) for v, p in zip(values, prefixes, strict=True) if p[-1] != TOKENIZER.pad_token_id]
        assert [v for v, _ in read] == pytest.approx([by_transformers(model, p) for _, p in read], abs=1e-5)
    assert max(map(max, ours)) - min(map(min, ours)) > 0.2


def test_microbatches_change_nothing(tmp_path):
    save_classifier(tmp_path)
    whole, alone = (load(tmp_path, microbatch_tokens=n).values(RESPONSES) for n in (8192, 1))
    for one, other in zip(whole, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_text_is_scored_in_its_own_tokens_closed_by_its_own_eos(tmp_path):
    model = save_classifier(tmp_path, "sequence", num_labels=2)
    answers = [(Problem("p", "x", "up"), text) for text in ("uud", "d", "")]
    token_ids = [tuple(TOKENIZER.encode(f"x{text}<eos>")) for _, text in answers]
    expected = [by_transformers(model, ids) for ids in token_ids]
    assert load(tmp_path).scores(answers) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(tmp_path):
    for iteration in (2, 10):
        save_classifier(tmp_path / "checkpoints" / f"iteration-{iteration:06d}")
    assert load(tmp_path).name.endswith("iteration-000010")


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_bin(folder: Path) -> None:
    torch.save(dict(save_classifier(folder).state_dict()), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_encoder(folder: Path) -> None:
    """Attends to what comes later."""
    config = BertConfig(vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.num_labels, config.initializer_range = 1, 0.5
    BertForTokenClassification(config).save_pretrained(folder)


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


REFUSED = {
    "no such folder": (shutil.rmtree, "no such file or folder"),
    "a language model": (lambda f: save_classifier(f, "causal"), "config.json names LlamaForCausalLM; `vineppo prm`"),
    "no architecture": (lambda f: edit(f, architectures=None), "config.json names no architecture"),
    "three classes": (lambda f: save_classifier(f, num_labels=3), "it has 3 classes"),
    "an encoder": (as_encoder, "it looks ahead, or has more than a linear head"),
    "a pickle": (as_bin, "no file named model.safetensors"),
    "no tokenizer": (without_tokenizer, "token"),
    "a vocabulary beyond the embeddings": (
        lambda f: make_symbol_tokenizer("udxabcdefgh").save_pretrained(f), "do not belong together"
    ),
    "half of its weights": (lambda f: edit(f, num_hidden_layers=3), "weights that are missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_reward_model_is_refused_in_one_line(tmp_path, name):
    harm, message = REFUSED[name]
    save_classifier(tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model")
    assert message in str(caught.value)
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_vocabulary_than_the_policys_is_refused(tmp_path):
    save_classifier(tmp_path)
    model = load(tmp_path)
    model.check_tokenizer(TOKENIZER)
    with pytest.raises(UserError, match=r"[2-5] of the policy's 6 tokens have other ids in its vocabulary, such as"):
        model.check_tokenizer(make_symbol_tokenizer("dxa"))


def test_a_response_beyond_its_context_is_refused(tmp_path):
    save_classifier(tmp_path, max_position_embeddings=20)
    load(tmp_path).values([((1,), (2,) * 19)])
    with pytest.raises(UserError, match="has 21 tokens, and the model's context is 20"):
        load(tmp_path).values([((1,), (2,) * 20)])
