"""Thoughts are cut and trained on like any text, and what follows them is graded."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from test_framing import CHATML, tokenizer_of

from vineppo.environment import Environment, GradedCompletion
from vineppo.episode import State
from vineppo.grading import Grader, GradingConfig
from vineppo.rollouts import make_rollout
from vineppo.segments import are_cuts, cut_lines, cut_sentences, looks_ahead, segment_texts
from vineppo.thinking import ThinkingConfig, check_mark, cut_turn, said
from vineppo.transcript import Transcript
from vineppo.types import Completion, Grade, Problem, SamplingParams, UserError

LINES, SENTENCES = ThinkingConfig(), ThinkingConfig(segments="sentences")
TASK = SimpleNamespace(segment=cut_lines)


@pytest.mark.parametrize("end", ["</think>", "</think>\n\n", "\n</think>", ".", ". </think>\n"])
@pytest.mark.parametrize("segments", ["lines", "sentences"])
def test_cuts_are_decided_by_what_stands_before_them(end, segments):
    rng, thinking = random.Random(0), ThinkingConfig(end=end, segments=segments)
    pieces = ["a", "b c", ". ", "!\n", "\n", "3.14", '." ', "</think>", "</thi", "nk>", "#### 4\n", "\n\n"]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=12))

        def cut(text: str) -> list[int]:
            return cut_turn(TASK, text, thinking)  # type: ignore[arg-type]

        assert are_cuts(cut(text), text)
        assert not any(looks_ahead(cut, text, n) for n in range(len(text)))


def test_thoughts_are_cut_by_their_rule_and_the_rest_by_the_tasks():
    text = "One. Two\nthree. </think>four. five\n#### 4"

    def pieces(thinking: ThinkingConfig) -> list[str]:
        cuts = [0, *cut_turn(TASK, text, thinking), len(text)]  # type: ignore[arg-type]
        return [text[a:b] for a, b in pairwise(cuts)]

    assert pieces(LINES) == ["One. Two\n", "three. </think>", "four. five\n", "#### 4"]
    assert pieces(SENTENCES) == ["One. ", "Two\n", "three. ", "</think>", "four. five\n", "#### 4"]
    assert cut_sentences("It is 3.14 or so. (Is it?) Yes") == [18, 27]


def test_only_what_is_said_is_graded():
    assert said("a</think>b</think>c", LINES) == "b</think>c"
    assert said("a", LINES) == ""
    assert said("a", None) == "a"
    assert said(Transcript.of(["a</think>b", "c", "d</think>e"]), LINES).turns == ("b", "c", "e")  # type: ignore[attr-defined]


class LastWord:
    """Worth a point for each line that is said."""

    isolate = False
    segment = staticmethod(cut_lines)

    def grade(self, problem: Problem, response: str) -> Grade:
        rewards = [
            float(len(response[a:b]) > 1)
            for a, b in zip([0, *cut_lines(response)], [*cut_lines(response), None], strict=True)
        ]
        return Grade.of_segments(rewards, "correct")


class Writer:
    """An engine that writes one text."""

    def __init__(self, ids: list[int]):
        self.ids, self.usage = tuple(ids), {}

    def generate(self, requests, params, **_):
        return [Completion(self.ids, (0.0,) * len(self.ids), "eos", 0) for _ in requests]


def test_process_rewards_are_of_what_is_said():
    tokenizer = tokenizer_of(CHATML)
    text = "hm\nhm hm</think>one\ntwo\nthree"
    engine = Writer([*tokenizer.encode(text), tokenizer.eos_token_id])
    task = LastWord()
    with Grader(task, GradingConfig()) as grader:  # type: ignore[arg-type]
        environment = Environment(engine, task, grader, tokenizer, SamplingParams(), 99, thinking=LINES)  # type: ignore[arg-type]
        state = State(Problem("1", "a", "b"), (5,))
        (graded,) = environment.finish([state], [99], [0], purpose="policy")
        assert isinstance(graded, GradedCompletion)
        assert (graded.said, graded.text, graded.grade.reward) == ("one\ntwo\nthree", text, 3.0)
        rollout = make_rollout(environment, state, graded, 99)
    segments = segment_texts(tokenizer, rollout.token_ids, rollout.boundaries)
    assert segments == ["hm\n", "hm hm</think>", "one\n", "two\n", "three"]
    assert rollout.segment_rewards == (0.0, 0.0, 1.0, 1.0, 1.0)
    assert replace(rollout, text=rollout.text) == rollout


@pytest.mark.parametrize(
    ("end", "message"),
    [("<|end|>", "has a special token"), ("so.<eos>\n", "has a special token"), ("\u00e9", "cannot write it")],
)
def test_an_end_of_thoughts_that_no_text_shows_is_named(end, message):
    with pytest.raises(UserError, match=rf"^thinking.end = .*{message}"):
        check_mark(ThinkingConfig(end=end), tokenizer_of(None))


@pytest.mark.parametrize("end", ["</think>", "</think>\n\n", "\n</think>", " "])
def test_an_end_of_thoughts_may_be_any_text(end):
    check_mark(ThinkingConfig(end=end), tokenizer_of(None))
    check_mark(None, tokenizer_of(None))
