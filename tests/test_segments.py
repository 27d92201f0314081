"""Pieces spell the decoded text exactly, whatever the tokens; boundaries partition them, whatever the cuts."""

import random
import time
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vineppo.checks import check_boundaries
from vineppo.models.make import make_symbol_tokenizer
from vineppo.segments import (
    are_cuts,
    cut_lines,
    decode_pieces,
    token_boundaries,
    token_segment_rewards,
)

TEXTS = [
    "So 7 + 4 = 11.\n#### 11",
    "naïve café",
    "数学 很有趣。答案是 42",
    "fun 🎉🎉 👩‍👩‍👧 end",
    " leading",
    "\n\n a  b \n",
    "\ufffd x",
]


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS[:2], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def make_sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2: spaces are part of words, the first one is stripped, unknown characters are byte tokens."""
    words = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁b", "a", "b", "\n"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def token_ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


BYTES = make_byte_tokenizer()
PIECES = make_sentencepiece_like_tokenizer()
CHARACTERS = make_symbol_tokenizer("abc=+\n# 0123456789")
TOKENIZERS = {"bytes": BYTES, "sentencepiece": PIECES, "characters": CHARACTERS}


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_spell_the_text(text):
    ids = BYTES.encode(text)
    assert "".join(decode_pieces(BYTES, ids)) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_spell_what_any_tokens_decode_to(name):
    tokenizer, rng = TOKENIZERS[name], random.Random(0)
    for _ in range(150):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 60))]
        pieces = decode_pieces(tokenizer, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_belongs_to_the_token_that_completes_it():
    ids = [*BYTES.encode("a"), *BYTES.encode("数"), *BYTES.encode("b")]
    assert decode_pieces(BYTES, ids) == ["a", "", "", "数", "b"]


def test_a_leading_space_belongs_to_its_word():
    ids = token_ids(PIECES, "▁a", "▁b", "<0xE6>", "<0x95>", "<0xB0>", "▁a")
    assert decode_pieces(PIECES, ids) == ["a", " b", "", "", "数", " a"]


def test_eos_has_no_text_and_is_a_segment_of_its_own_only_right_behind_a_cut():
    pieces = decode_pieces(CHARACTERS, [*CHARACTERS.encode("a\nb"), *token_ids(CHARACTERS, "<eos>")])
    assert pieces == ["a", "\n", "b", ""]
    assert token_boundaries(pieces, [2]) == (0, 2, 4)
    assert token_boundaries(pieces, [2, 3]) == (0, 2, 3, 4)
    assert token_boundaries(pieces[:3], [2, 3]) == (0, 2, 3)  # nothing came
    assert token_boundaries([""], []) == (0, 1)


def test_a_token_that_straddles_a_cut_stays_in_the_earlier_segment_and_cuts_merge():
    pieces = ["one", ".\n\n", "two", "three"]
    assert token_boundaries(pieces, [4]) == (0, 2, 4)
    assert token_boundaries(pieces, [4, 5, 6]) == (0, 2, 4)
    assert token_boundaries(pieces, [13]) == (0, 4)
    assert token_boundaries(pieces, [-3, 0, 14, 99]) == (0, 4)
    assert token_boundaries([*pieces, ""], [13, 14]) == (0, 4, 5)


def test_a_character_split_over_tokens_moves_to_the_next_segment_whole():
    assert token_boundaries(["a", "", "", "数"], [1]) == (0, 1, 4)


def test_boundaries_partition_whatever_the_pieces_and_cuts():
    rng = random.Random(1)
    for _ in range(500):
        pieces = ["x" * rng.choice([0, 0, 1, 2, 5]) for _ in range(rng.randint(1, 12))]
        length = len("".join(pieces))
        cuts = sorted(rng.sample(range(1, length + 1), rng.randint(0, length)))
        boundaries = token_boundaries(pieces, cuts)
        check_boundaries(boundaries, len(pieces))
        for cut in cuts:  # the first boundary by which the cut's text is written
            assert min(b for b in boundaries if len("".join(pieces[:b])) >= cut) == next(
                i for i in range(1, len(pieces) + 1) if len("".join(pieces[:i])) >= cut
            )


def test_no_tokens_have_no_segments():
    with pytest.raises(ValueError, match="no tokens"):
        token_boundaries([], [])


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_decoding_is_linear_even_in_bytes_that_never_become_text(name):
    tokenizer = TOKENIZERS[name]
    garbage = token_ids(tokenizer, "<0x80>" if name == "sentencepiece" else "Ģ")  # the byte 80
    seconds = []
    for length in (500, 4000):
        start = time.perf_counter()
        decode_pieces(tokenizer, garbage * length + token_ids(tokenizer, "a"))
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 40 * seconds[0] + 0.5  # 8 times the tokens; quadratic would be 64


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("\nA=1\nB=2\n#### 3\n", ["\nA=1\n", "B=2\n", "#### 3\n", ""]),
        ("A\n\n\nB", ["A\n", "\n\nB"]),
        ("A\nB\n\n#### 3", ["A\n", "B\n", "\n#### 3"]),
        ("A\r\n\r\nB", ["A\r\n", "\r\nB"]),
        ("#### 3\n\n \n", ["#### 3\n", "\n \n"]),
        ("\n \n", ["\n \n"]),
        ("one line", ["one line"]),
        ("", [""]),
    ],
)
def test_a_line_with_text_ends_with_its_line_break(text, segments):
    bounds = [0, *cut_lines(text), len(text)]
    assert [text[a:b] for a, b in pairwise(bounds)] == segments


@pytest.mark.parametrize(("text", "cuts"), [("", []), ("ab", []), ("ab", [1]), ("ab", [2]), ("ab", [1, 2])])
def test_cuts_rise_inside_the_text_or_to_its_end(text, cuts):
    assert are_cuts(cuts, text)


@pytest.mark.parametrize("cuts", [[0], [-1], [3], [1, 1], [2, 1]])
def test_cuts_that_do_not_rise_inside_the_text_are_none(cuts):
    assert not are_cuts(cuts, "ab")


def test_a_piece_is_paid_for_where_it_ends():
    pieces = ["a", "\n", "b\n", "\n", "stop", ""]
    boundaries = token_boundaries(pieces, [2, 4])
    assert boundaries == (0, 2, 3, 6)
    assert token_segment_rewards(pieces, [2, 4], [1.0, 2.0, 4.0], boundaries) == (1.0, 2.0, 4.0)  # "\nstop" is open
    assert token_segment_rewards(pieces, [2], [1.0, 2.0], boundaries) == (1.0, 0.0, 2.0)  # up to "b": open to the end
