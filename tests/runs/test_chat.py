"""Runs of chat models: prompts through the template from the first sample on, and notes where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from test_framing import CHATML, tokenizer_of
from tiny import ALIKE, FAST, METHODS, SHAPE, recipe_of, run
from tokenizers.processors import TemplateProcessing

from vineppo.cli import main
from vineppo.methods.prm import read_run
from vineppo.models import TinyModelConfig
from vineppo.models.loading import load_tokenizer
from vineppo.models.make import make_tiny_model, save_model
from vineppo.rollout_files import rollout_files, rollouts_of
from vineppo.types import UserError

CHAT: dict[str, Any] = {"system": "Modulo 3.", "template": {"think": True}}
EVALUATION = {"num_samples": 1, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Random weights, and a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    folder.mkdir()
    tokenizer = tokenizer_of(CHATML)
    shape = TinyModelConfig.model_validate(SHAPE | {"hidden_size": 32, "context_size": 256})
    save_model(make_tiny_model(tokenizer, shape, 0), tokenizer, folder)
    return str(folder)


def sft(model: str, **changes: Any) -> dict[str, Any]:
    settings = {"num_problems": 40, "num_epochs": 1, "minibatch_size": 8}
    tree = ALIKE | {"name": "sft", "model": {"name": model}, "learner": FAST, "sft": settings, "evaluation": EVALUATION}
    return tree | {"chat": CHAT} | changes


def grpo(model: str, **changes: Any) -> dict[str, Any]:
    return (
        METHODS["grpo"] | {"name": "grpo", "model": {"name": model}, "evaluation": EVALUATION, "chat": CHAT} | changes
    )


def test_a_chat_model_learns_and_samples_in_its_template_and_its_prompts_can_be_read(model, tmp_path):
    run(sft(model), tmp_path / "sft")
    lines: list[str] = []
    run(grpo(str(tmp_path / "sft")), tmp_path / "grpo", echo=lines.append)
    assert not any("chat" in line for line in lines)  # it goes on as it began
    (first, *_) = rollout_files(tmp_path / "grpo" / "rollouts").values()
    prompts = {row["prompt"] for row in rollouts_of(first, first.name)}
    for prompt in prompts:
        assert prompt.startswith("<|start|>system\nModulo 3.<eos>\n<|start|>user\n")
        assert prompt.endswith("<eos>\n<|start|>assistant\n")


def test_a_run_goes_on_with_its_chat_and_with_no_other(model, tmp_path):
    run(sft(model), tmp_path)
    with pytest.raises(UserError, match=r"recipe has changed since this run began \(.*chat.system"):
        run(sft(model, chat=CHAT | {"system": "Modulo 4."}), tmp_path, resume=True)
    without = {key: value for key, value in sft(model).items() if key != "chat"}
    with pytest.raises(UserError, match=r"recipe has changed since this run began \(.*chat"):
        run(without, tmp_path, resume=True)


def test_prompts_that_are_not_what_the_model_was_taught_are_named(model, tmp_path):
    def said(tree: dict[str, Any], name: str) -> list[str]:
        lines: list[str] = []
        tree = {key: value for key, value in tree.items() if value is not None}
        run(tree, tmp_path / name, echo=lines.append)
        return [line for line in lines if "chat" in line]

    assert said(sft(model), "sft") == []
    (note,) = said(sft(model, chat=None), "plain")
    assert "has a chat template, and this recipe's prompts are plain text" in note
    (note,) = said(grpo(str(tmp_path / "sft"), chat=None), "other")
    assert "was trained with [chat] = " in note
    assert "and this recipe is without [chat]" in note
    assert said(grpo(str(tmp_path / "plain"), chat=None), "same") == []


def test_check_task_shows_the_prompt_as_the_model_sees_it(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sft.toml").write_text(tomli_w.dumps(sft(model)))
    assert recipe_of(sft(model)).chat is not None
    assert main(["check-task", "sft.toml"]) == 0
    said = capsys.readouterr().out
    assert said.count("<|start|>system\nModulo 3.") == 3


def test_check_task_names_a_run_that_was_spoken_to_otherwise(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(sft(model), Path("taught"))
    for chat, is_named in ((CHAT, False), (CHAT | {"system": "Modulo 4."}, True)):
        Path("grpo.toml").write_text(tomli_w.dumps(grpo("taught", chat=chat)))
        assert main(["check-task", "grpo.toml"]) == 0
        assert ("model taught was trained with [chat] = " in capsys.readouterr().out) == is_named


def test_a_process_reward_model_reads_the_prompts_that_the_run_has_read(tmp_path):
    """Its tokenizer adds a bos to any text, and the template has none."""
    tokenizer = tokenizer_of(CHATML)
    bos = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.save_pretrained(tmp_path / "model")
    shape = TinyModelConfig.model_validate(SHAPE | {"hidden_size": 32, "context_size": 256})
    save_model(make_tiny_model(tokenizer, shape, 0), tokenizer, tmp_path / "model")
    credit = {"name": "vineppo", "num_vines": 2}
    run(grpo(str(tmp_path / "model"), name="vineppo", credit=credit), tmp_path / "measured")
    rows = list(read_run(tmp_path / "measured", load_tokenizer(str(tmp_path / "model"))))
    assert {row.prompt_ids[0] for row in rows} == set(tokenizer.encode("<|start|>", add_special_tokens=False))
