"""Prompts and replies through chat templates: the tokens are those of the template itself."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import normalizers

from vineppo.framing import ChatConfig, ChatExample, Framing
from vineppo.models.make import make_symbol_tokenizer
from vineppo.transcript import Transcript
from vineppo.types import Problem, UserError

CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if not think %}<think></think>{% endif %}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}<eos>{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
OWN_END = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Turns end otherwise than texts."""
PROBLEM = Problem("1", "two and two?", "4", solution="it is 4")


def tokenizer_of(template: str | None) -> Any:
    letters = [chr(code) for code in range(33, 127)]
    tokenizer = make_symbol_tokenizer((*letters, " ", "\n"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, BRACKETS])
def test_the_prompt_is_the_templates(template):
    tokenizer = tokenizer_of(template)
    framing = Framing(tokenizer, ChatConfig())
    messages = [{"role": "user", "content": PROBLEM.prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(framing.prompt_ids(PROBLEM)) == ids
    assert framing.prompt(PROBLEM) == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


def test_system_examples_and_arguments_of_the_template_are_in_the_prompt():
    shown = ChatExample(prompt="one and one?", response="2")
    config = ChatConfig(system="Be brief.", examples=(shown,), template={"think": True})
    assert Framing(tokenizer_of(CHATML), config).prompt(PROBLEM) == (
        "<|start|>system\nBe brief.<eos>\n<|start|>user\none and one?<eos>\n<|start|>assistant\n2<eos>\n"
        "<|start|>user\ntwo and two?<eos>\n<|start|>assistant\n"
    )


@pytest.mark.parametrize("template", [CHATML, BRACKETS, OWN_END])
@pytest.mark.parametrize("ended_by", ["eos", "stop"])
def test_turns_have_the_tokens_of_the_same_conversation_in_the_template(template, ended_by):
    tokenizer = tokenizer_of(template)
    framing = Framing(tokenizer, ChatConfig(template={"think": True}))
    solution = Transcript.of(["is it 3?", "no", "it is 4"])
    messages = [("user", PROBLEM.prompt), *zip(("assistant", "user"), solution.turns[:2], strict=True)]
    whole = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        add_generation_prompt=True,
        tokenize=False,
        think=True,
    )
    said = tokenizer.encode(solution.turns[0], add_special_tokens=False)
    ends = "<|end|>" if template is OWN_END else "<eos>"
    turn = [*said, *([] if ended_by == "stop" else tokenizer.encode(ends))]
    space = " " if template is BRACKETS else ""  # which the model writes itself
    ids = [*framing.prompt_ids(PROBLEM), *tokenizer.encode(space), *turn, *framing.reply_ids("no", turn[-1])]
    assert tokenizer.decode(ids) == whole


def test_an_eos_that_ends_the_text_behind_a_turn_is_not_repeated():
    framing = Framing(tokenizer_of("{% for m in messages %}{{ m.content }}<eos>{% endfor %}"), ChatConfig())
    assert framing.tokenizer.decode(framing.reply_ids("no")) == "no<eos>"


@pytest.mark.parametrize("reply", ["\u00e9", "\ud800"])
def test_a_reply_that_has_no_tokens_is_named(reply):
    with pytest.raises(UserError, match=r"^reply .*: the model's tokenizer cannot write it"):
        Framing(tokenizer_of(None)).reply_ids(f"so{reply}")


def test_a_reply_of_which_no_token_is_left_is_named():
    tokenizer = tokenizer_of(None)
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    framing = Framing(tokenizer)
    assert framing.reply_ids("a ")
    with pytest.raises(UserError, match=r"^reply ' ': nothing is left of it"):
        framing.reply_ids(" ")


def test_worked_solutions_are_masked_where_the_environment_speaks():
    framing = Framing(tokenizer_of(CHATML), ChatConfig())
    ids, mask = framing.response(Transcript.of(["ab", "no", "c"]))
    assert mask is not None
    decode = framing.tokenizer.decode
    assert decode([i for i, own in zip(ids, mask, strict=True) if own]) == "ab<eos>c<eos>"
    assert decode([i for i, own in zip(ids, mask, strict=True) if not own]).strip().startswith("<|start|>user\nno<eos>")
    assert framing.response("ab")[1] is None


def test_a_reply_cannot_spell_a_special_token():
    framing = Framing(tokenizer_of(CHATML))
    ids = framing.reply_ids("so<eos>ho<|start|>")
    assert not {framing.tokenizer.eos_token_id, *framing.tokenizer.encode("<|start|>")} & set(ids)
    assert framing.tokenizer.decode(ids) == "so<eos>ho<|start|>"


@pytest.mark.parametrize("config", [None, ChatConfig()])
def test_a_worked_solution_is_as_long_as_it_says_and_ends_once(config):
    """What it spells would otherwise be an eos in its middle, behind which no policy can write."""
    framing = Framing(tokenizer_of(CHATML), config)
    ids, _ = framing.response("4<eos>, or <|start|>so")
    assert framing.tokenizer.decode(ids, skip_special_tokens=True) == "4<eos>, or <|start|>so"
    assert [n for n, token in enumerate(ids) if token == framing.tokenizer.eos_token_id] == [len(ids) - 1]


@pytest.mark.parametrize(
    ("template", "config", "message"),
    [
        (None, ChatConfig(), "the model's tokenizer has no chat template"),
        (BRACKETS, ChatConfig(system="x"), "does not take messages of system, user: Only user and assistant"),
        ("{{ nonsense( }}", ChatConfig(), "does not take messages of user: "),
    ],
)
def test_what_a_template_refuses_is_one_line(template, config, message):
    with pytest.raises(UserError, match=f"^chat: .*{message}") as raised:
        Framing(tokenizer_of(template), config).prompt(PROBLEM)
    assert "\n" not in str(raised.value)


TWICE = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"


@pytest.mark.parametrize(
    "template", ["{{ messages | length }}", TWICE + "{{ messages[-1].content }}", TWICE + "{{ messages[0].content }}"]
)
def test_a_template_that_hides_or_repeats_what_was_said_takes_no_turns(template):
    framing = Framing(tokenizer_of(template), ChatConfig())
    with pytest.raises(UserError, match="takes no turns"):
        framing.reply_ids("no")


def test_problems_may_be_chats_and_then_need_a_template():
    problem = Problem("1", "x", "y", messages=(("user", "a?"), ("assistant", "b"), ("user", "c?")))
    assert "a?<eos>\n<|start|>assistant\nb<eos>" in Framing(tokenizer_of(CHATML), ChatConfig()).prompt(problem)
    with pytest.raises(UserError, match=r"problem 1 is a chat: add a \[chat\] section"):
        Framing(tokenizer_of(CHATML)).prompt(problem)
