"""How a problem, and what an environment replies, become the tokens that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from vineppo.config import Config
from vineppo.transcript import turns_of
from vineppo.types import Problem, UserError

QUESTION, TURN, REPLY = "a question that it is asked", "a turn of the policy", "a reply to it"
"""Stand where these stand, to see what a template puts around them."""


class ChatExample(Config):
    prompt: str
    response: str


class ChatConfig(Config):
    """Problems are put to the model as messages, through its tokenizer's own template."""

    system: str | None = None
    """What the first message says, of role "system"."""
    examples: tuple[ChatExample, ...] = ()
    """Worked ones, in front of every problem."""
    template: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of the template, such as `enable_thinking = false`."""


def encode_text(tokenizer: Any, text: str, what: str, **options: bool) -> list[int]:
    """Raises UserError, which says `what` the text is, where the tokenizer cannot write it."""
    try:
        return tokenizer.encode(text, **options)
    except Exception as error:  # the tokenizer's own, of a text that has no tokens
        raise UserError(f"{what} {text[:80]!r}: the model's tokenizer cannot write it: {error}") from None


def encode_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """As the tokenizer frames a text; a prompt that begins with bos is framed already, as a chat template leaves it."""
    bos = tokenizer.bos_token
    ids = encode_text(tokenizer, prompt, "prompt", add_special_tokens=not (bos and prompt.startswith(bos)))
    closed = bool(ids) and ids[-1] == tokenizer.eos_token_id
    return tuple(ids[:-1] if closed else ids)  # some tokenizers close every text; the policy continues this one


@dataclass(frozen=True)
class Framing:
    tokenizer: Any
    chat: ChatConfig | None = None

    def prompt(self, problem: Problem) -> str:
        """The exact text that the policy continues."""
        if self.chat is None:
            if problem.messages:
                raise UserError(f"problem {problem.id} is a chat: add a [chat] section to the recipe")
            return problem.prompt
        return self._render([*self._before(), *self._messages(problem)])

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        return self.encode(self.prompt(problem))

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Of a text that `prompt` has made."""
        if self.chat is None:
            return encode_prompt(self.tokenizer, prompt)
        # The template has put in what is needed.
        return tuple(encode_text(self.tokenizer, prompt, "prompt", add_special_tokens=False))

    def reply_ids(self, reply: str, last: int | None = None) -> tuple[int, ...]:
        """What stands between a turn of the policy and its next; at least one token. `last` is the turn's last token,
        by default eos. What a reply says is text: a special token that it spells is none."""
        said = self._said_ids(reply)
        if self.chat is None:
            return said
        before, after = self._around_reply
        return (*self._behind(self.tokenizer.eos_token_id if last is None else last, before), *said, *after)

    def _said_ids(self, reply: str) -> tuple[int, ...]:
        ids = self._encode_words(reply, "reply")
        if not ids:  # two turns with nothing between them would be one
            raise UserError(f"reply {reply[:80]!r}: nothing is left of it in the tokens of the model's tokenizer")
        return tuple(ids)

    def _behind(self, last: int, closing: list[int]) -> list[int]:
        """Without what the turn has written itself, be it eos or another token that ends turns."""
        is_text = bool(self.tokenizer.decode([last], skip_special_tokens=True))
        return closing if is_text or last not in closing else closing[closing.index(last) + 1 :]

    def response(self, response: str) -> tuple[tuple[int, ...], tuple[bool, ...] | None]:
        """A worked solution as the policy would have written it, every turn closed by eos; and its action mask."""
        ids: list[int] = []
        mask: list[bool] = []
        for number, turn in enumerate(turns_of(response)):
            is_action = number % 2 == 0
            encoded = self._turn_ids(turn) if is_action else self.reply_ids(turn)
            ids += encoded
            mask += [is_action] * len(encoded)
        return tuple(ids), None if all(mask) else tuple(mask)

    def _turn_ids(self, turn: str) -> tuple[int, ...]:
        """What it says is text, as in `reply_ids`: no response goes on behind an eos."""
        return (*self._encode_words(turn, "worked solution"), self.tokenizer.eos_token_id)

    def _encode_words(self, text: str, what: str) -> list[int]:
        """A special token that it spells is none."""
        return encode_text(self.tokenizer, text, what, add_special_tokens=False, split_special_tokens=True)

    def _before(self) -> list[dict[str, str]]:
        assert self.chat is not None
        system = [{"role": "system", "content": self.chat.system}] if self.chat.system else []
        pairs = [(("user", shown.prompt), ("assistant", shown.response)) for shown in self.chat.examples]
        return [*system, *({"role": role, "content": text} for pair in pairs for role, text in pair)]

    def _messages(self, problem: Problem) -> list[dict[str, str]]:
        messages = problem.messages or (("user", problem.prompt),)
        return [{"role": role, "content": text} for role, text in messages]

    @cached_property
    def _around_reply(self) -> tuple[list[int], list[int]]:
        """Tokens that the template puts between what the policy's turn says and a message, and behind the message."""
        turns = [("user", QUESTION), ("assistant", TURN), ("user", REPLY)]
        text = self._render([{"role": role, "content": said} for role, said in turns])
        behind = text.partition(TURN)[2]
        before, found, after = behind.partition(REPLY)
        if not found or any(said in before + after for said in (QUESTION, TURN, REPLY)):
            raise UserError(
                "chat: the tokenizer's template does not repeat what messages say, each once and in order, so it takes "
                "no turns"
            )
        before_ids, after_ids = (self.tokenizer.encode(text, add_special_tokens=False) for text in (before, after))
        return before_ids, after_ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        assert self.chat is not None
        if not self.tokenizer.chat_template:
            raise UserError("chat: the model's tokenizer has no chat template; leave [chat] out, or take a chat model")
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.chat.template
            )
        except Exception as error:  # jinja's own, and whatever a template makes of its arguments
            roles = ", ".join(message["role"] for message in messages)
            said = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"chat: the tokenizer's template does not take messages of {roles}: {said}") from None
