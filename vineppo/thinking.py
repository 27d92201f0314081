"""Responses that think before they answer: what is thought is cut, credited and trained on, and not graded."""

from __future__ import annotations

from typing import Any, Literal

from vineppo.config import Config
from vineppo.framing import encode_text
from vineppo.protocols import Task
from vineppo.segments import cut_lines, cut_sentences
from vineppo.transcript import Transcript
from vineppo.types import UserError


class ThinkingConfig(Config):
    end: str = "</think>"
    """What closes the thoughts. A response, or a turn, without it says nothing that could be graded."""
    segments: Literal["lines", "sentences"] = "lines"
    """Where thoughts may be cut; what is said after them is cut by the task. For a state every n tokens, wherever that
    is, there is credit.states."""


def check_mark(thinking: ThinkingConfig | None, tokenizer: Any) -> None:
    """Raises UserError where no text that a model writes with this tokenizer has the end of thoughts in it."""
    if thinking is None:
        return
    ids = encode_text(tokenizer, thinking.end, "thinking.end =", add_special_tokens=False)
    if thinking.end.strip() not in tokenizer.decode(ids, skip_special_tokens=True):
        raise UserError(
            f"thinking.end = {thinking.end!r} has a special token of the model's tokenizer, which no text shows, so "
            "nothing would ever be graded; take an end that the model writes as text"
        )


def said(text: str, thinking: ThinkingConfig | None) -> str:
    """What is left to grade."""
    if thinking is None:
        return text
    if isinstance(text, Transcript):
        turns = [reply if n % 2 else said(reply, thinking) for n, reply in enumerate(text.turns)]
        return Transcript.of(turns)
    return text.partition(thinking.end)[2]


def cut_thoughts(text: str, thinking: ThinkingConfig | None) -> list[int]:
    """Where a turn may be cut before anything is said, and where that begins. As `Task.segment` promises: every cut is
    decided by what stands before it."""
    if thinking is None:
        return []
    thoughts, end, _ = text.partition(thinking.end)
    cut = cut_lines if thinking.segments == "lines" else cut_sentences
    # Its mark among them: before that is complete nobody knows that it is one, and it may begin or end with lines.
    return sorted({*cut(thoughts + end), *([len(thoughts + end)] if end else [])})


def cut_turn(task: Task, text: str, thinking: ThinkingConfig | None) -> list[int]:
    cuts = cut_thoughts(text, thinking)
    if thinking is not None and thinking.end not in text:
        return cuts
    start = cuts[-1] if cuts else 0
    return cuts + [start + cut for cut in task.segment(text[start:])]
