"""A model from outside is the one its files say, or it is refused with one line that names what is wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from vineppo.framing import Framing, encode_prompt
from vineppo.methods.sft import SFTConfig, make_examples
from vineppo.models import TinyModelConfig
from vineppo.models.loading import load_critic_model, load_model, load_policy_model, load_tokenizer
from vineppo.models.make import make_critic_model, make_symbol_tokenizer, make_tiny_model, save_model
from vineppo.types import Problem, UserError

TOKENIZER = make_symbol_tokenizer([*"0123456789", "+1", "+", " a", "\n"])
TINY = TinyModelConfig(num_layers=2, hidden_size=16, num_heads=2, ffn_size=24, context_size=64)
WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"
MARK = str(Path(tempfile.gettempdir()) / "made-by-a-model")


@pytest.fixture
def folder(tmp_path) -> Path:
    save_model(make_tiny_model(TOKENIZER, TINY, seed=1), TOKENIZER, tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    how(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / BIN)
    (folder / WEIGHTS).unlink()


def as_shards(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="4KB")
    (folder / WEIGHTS).unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1


class Harm:
    """Pickled, it would make a file where it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path(MARK),)


def expect_one_line(folder: Path, capfd: Any, load: Callable[[str], Any] = load_policy_model) -> str:
    with pytest.raises(UserError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert not message.endswith(":")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    return message


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a lost layer": (
        lambda f: change(f, lambda t: [t.pop(key) for key in list(t) if ".layers.1." in key]),
        r"9 weights that are missing, such as model\.layers\.1\.",
    ),
    "a lost head": (lambda f: change(f, lambda t: t.pop("lm_head.weight")), r"1 weights .*lm_head\.weight"),
    "a tensor of nobody": (lambda f: change(f, lambda t: t.update(odd=torch.ones(2))), "no place for, such as odd"),
    "a renamed tensor": (
        lambda f: change(f, lambda t: t.update({"model.norm.wait": t.pop("model.norm.weight")})),
        r"missing, such as model\.norm\.weight",
    ),
    "a tensor of another shape": (
        lambda f: change(f, lambda t: t.update({"model.norm.weight": torch.ones(5)})),
        r"model\.norm\.weight has \(5,\) and not \(16,\)",
    ),
    "more layers than there are": (lambda f: edit(f, "config.json", num_hidden_layers=3), "missing"),
    "fewer layers than there are": (lambda f: edit(f, "config.json", num_hidden_layers=1), "no place"),
    "no layers": (lambda f: edit(f, "config.json", num_hidden_layers=0), "no place"),
    "a million layers": (lambda f: edit(f, "config.json", num_hidden_layers=10**9), "its weights take"),
    "another width": (lambda f: edit(f, "config.json", hidden_size=32), "another shape"),
    "a width beyond the files": (lambda f: edit(f, "config.json", hidden_size=4_000_000), "and the files hold"),
    "a width beyond the memory": (
        lambda f: edit(f, "config.json", hidden_size=4_000_000, intermediate_size=10**9), "its weights take"
    ),
    "heads that do not divide the width": (lambda f: edit(f, "config.json", num_attention_heads=3), "config|heads"),
    "a vocabulary smaller than its padding": (lambda f: edit(f, "config.json", vocab_size=5), "cannot be loaded"),
    "no architecture": (lambda f: edit(f, "config.json", model_type="nothing"), "nothing"),
    "a width that is text": (lambda f: edit(f, "config.json", hidden_size="wide"), "hidden_size"),
    "a list for a config": (lambda f: (f / "config.json").write_text("[1]"), "config"),
    "half a config": (lambda f: (f / "config.json").write_text('{"model_type": "lla'), "config.json"),
    "a config too deep": (lambda f: (f / "config.json").write_text("[" * 10**5), "config|Recursion"),
    "weights cut in half": (lambda f: cut(f / WEIGHTS), "SafetensorError"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "SafetensorError"),
    "garbage for weights": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 500), "SafetensorError"),
    "a pointer for weights": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
        "model.safetensors is a Git LFS pointer",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no file named"),
    "NaN": (lambda f: change(f, lambda t: t["model.norm.weight"].fill_(torch.nan)), r"model\.norm\.weight holds"),
    "infinity": (lambda f: change(f, lambda t: t["lm_head.weight"][3, 4:5].fill_(-torch.inf)), r"head\.weight holds"),
    "weights too large": (lambda f: change(f, lambda t: t["lm_head.weight"].fill_(3e38)), "logits are not"),
    "a lost shard": (lambda f: (as_shards(f), sorted(f.glob("model-*"))[0].unlink()), "model-"),
    "a shard that is not listed": (
        lambda f: (as_shards(f), drop_from_index(f, "model.norm.weight")),
        "missing|model.norm",
    ),
    "a damaged index": (lambda f: (as_shards(f), (f / f"{WEIGHTS}.index.json").write_text("{")), "cannot be loaded"),
    "a pickle that harms": (lambda f: (as_bin(f), (f / BIN).write_bytes(pickle.dumps(Harm()))), "cannot be loaded"),
    "torch's own that harms": (lambda f: (as_bin(f), torch.save({"a": Harm()}, f / BIN)), "cannot be loaded"),
    "a lost layer, .bin": (
        lambda f: (change(f, lambda t: t.pop("model.norm.weight")), as_bin(f)),
        r"missing, such as model\.norm",
    ),
    "code of its own": (
        lambda f: (
            edit(f, "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
            (f / "own.py").write_text(f"open({MARK!r}, 'w')"),
        ),
        "custom code",
    ),
    "an empty tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "KeyError"),
    "half a tokenizer": (lambda f: cut(f / "tokenizer.json"), "cannot be loaded"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("tokenizer*")], "cannot be loaded"),
    "another's tokenizer": (
        lambda f: make_symbol_tokenizer([chr(i) for i in range(200, 260)]).save_pretrained(f),
        "45 tokens that the model has no embedding for",
    ),
}  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_from_index(folder: Path, key: str) -> None:
    path = folder / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"].pop(key)
    path.write_text(json.dumps(index))
    tensors = load_file(folder / where)
    tensors.pop(key)
    save_file(tensors, folder / where, metadata={"format": "pt"})


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_model_is_one_line_that_says_what_is_wrong(what, folder, capfd):
    damage, reason = DAMAGE[what]
    damage(folder)
    capfd.readouterr()
    message = expect_one_line(folder, capfd)
    assert re.search(reason, message), message
    assert not Path(MARK).exists()


@pytest.mark.parametrize("form", [as_shards, as_bin, lambda folder: None], ids=["shards", "bin", "one file"])
@pytest.mark.parametrize("tied", [False, True])
def test_whole_models_of_any_form_come_as_they_were(form, tied, folder):
    model = make_tiny_model(TOKENIZER, TINY, seed=1)
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    save_model(model, TOKENIZER, folder)
    form(folder)
    _, loaded = load_policy_model(str(folder))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_prompt_is_framed_once(adds_bos):
    """Whether the tokenizer frames it or, as chat templates do, the prompt itself."""
    tokenizer = make_symbol_tokenizer("ab")
    bos, eos, a = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.encode("a")[0]
    if adds_bos:
        framed = TemplateProcessing("<bos> $A <eos>", None, [("<bos>", bos), ("<eos>", eos)])
        tokenizer.backend_tokenizer.post_processor = framed  # type: ignore[union-attr]
    assert encode_prompt(tokenizer, "a") == ((bos, a) if adds_bos else (a,))
    assert encode_prompt(tokenizer, "<bos>a") == (bos, a)
    assert encode_prompt(tokenizer, "<bos><bos>a") == (bos, bos, a)
    assert encode_prompt(tokenizer, "a<bos>") == ((bos, a, bos) if adds_bos else (a, bos))


def test_problems_without_a_solution_teach_nothing():
    task = SimpleNamespace(split=lambda name: [Problem("1", "a", "b", "b"), Problem("2", "a", "b", " ")])
    with pytest.raises(UserError, match="1 of 2 training problems have no worked solution"):
        make_examples(task, Framing(TOKENIZER), SFTConfig(), context=64, seed=0)  # type: ignore[arg-type]


def test_every_lost_tensor_is_noticed(folder, capfd):
    for key in load_file(folder / WEIGHTS):
        copied = folder.with_name("copy")
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        change(copied, lambda tensors, key=key: tensors.pop(key))
        assert f"1 weights that are missing, such as {key};" in expect_one_line(copied, capfd, load_model)


def test_a_backbone_alone_is_no_language_model(folder, capfd):
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    capfd.readouterr()
    assert "missing, such as lm_head.weight" in expect_one_line(folder, capfd, load_model)


def test_a_critic_without_its_head_is_refused(folder, capfd):
    capfd.readouterr()
    assert "missing, such as score." in expect_one_line(folder, capfd, load_critic_model)
    make_critic_model(make_tiny_model(TOKENIZER, TINY, seed=1), seed=0).save_pretrained(folder)
    change(folder, lambda tensors: tensors["score.weight"].fill_(torch.nan))
    capfd.readouterr()
    assert "score.weight holds" in expect_one_line(folder, capfd, load_critic_model)


def test_special_tokens_that_the_model_does_not_have_may_lie_beyond_its_embeddings(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    load_policy_model(str(folder))
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="1 tokens that the model has no embedding for"):
        load_policy_model(str(folder))


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
