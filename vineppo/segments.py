"""Where a response may be cut, from characters to tokens. The only place that maps text to tokens.

A task names character positions (cuts); `token_boundaries` turns them into token indices, never re-tokenising: the
policy's own tokens are the state, and decoding tells which text each of them wrote.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no UTF-8, or not yet
SENTENCE_END = re.compile(r"[.!?][)\]\"']*\s")
MAX_UNFINISHED = 3  # a UTF-8 character has at most 4 bytes, so at most 3 of them can wait for the last
MAX_WINDOW = 16  # tokens; enough for several characters spread over one token per byte


def decode_pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """The text each token adds: `"".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)`, always.

    A character spread over several tokens belongs to the token that completes it, the others add "". Special tokens
    (eos) add "". `tokenizer` is a Hugging Face tokenizer or anything with its `decode`. Linear in the tokens.
    """
    token_ids = list(token_ids)
    text = _decode(tokenizer, token_ids)
    alone = {token: _decode(tokenizer, [token]) for token in set(token_ids)}
    pieces = [alone[token] for token in token_ids]
    if "".join(pieces) == text:
        return pieces
    pieces = _decode_in_windows(tokenizer, token_ids)
    return pieces if "".join(pieces) == text else _fit(pieces, text)


def segment_texts(tokenizer: Any, token_ids: Sequence[int], boundaries: Sequence[int]) -> list[str]:  # [S]
    """What the tokens of each segment wrote; together the whole text."""
    pieces = decode_pieces(tokenizer, token_ids)
    return ["".join(pieces[a:b]) for a, b in pairwise(boundaries)]


def cut_tokens(pieces: Sequence[str], cuts: Sequence[int]) -> list[int]:
    """Token indices in (0, len(pieces)], strictly increasing, before which a segment begins, for the character `cuts`.

    A segment ends with the token that brings its last character. So a token that straddles a cut stays in the earlier
    segment, cuts that fall on one token merge, and tokens without text (eos, the first bytes of a character) begin the
    next segment. An index depends on the tokens before it alone if the cuts do (`vineppo.protocols.Task.segment`).
    """
    ends = list(accumulate(map(len, pieces)))  # [L], where each token's text ends
    return sorted({bisect_left(ends, cut) + 1 for cut in cuts if 0 < cut <= ends[-1]})


def token_boundaries(pieces: Sequence[str], cuts: Sequence[int]) -> tuple[int, ...]:
    """Token indices [S+1], 0 = b_0 < ... < b_S = len(pieces), of the segments that begin at the character `cuts`.

    Needs at least one token.
    """
    if not pieces:
        raise ValueError("a response of no tokens has no segments")
    return (0, *(index for index in cut_tokens(pieces, cuts) if index < len(pieces)), len(pieces))


def are_cuts(cuts: Sequence[int], text: str) -> bool:
    """Whether they are as `vineppo.protocols.Task.segment` promises: strictly increasing and inside (0, len(text)]."""
    return all(a < b for a, b in pairwise((0, *cuts, len(text) + 1)))


def looks_ahead(segment: Callable[[str], list[int]], text: str, n: int) -> bool:
    """Whether the first n characters are cut otherwise alone than with what follows them."""
    return segment(text[:n]) != [cut for cut in segment(text) if cut <= n]


def token_segment_rewards(
    pieces: Sequence[str], cuts: Sequence[int], rewards: Sequence[float], boundaries: Sequence[int]
) -> tuple[float, ...]:  # [S]
    """Rewards of a text's pieces, [len(cuts) + 1], for the token segments in which these end.

    Where cuts fall on one token and merge, so do their rewards. The last piece, which no cut closes, ends with the
    response: its tokens may go on behind the text that the rewards are for, as those of a stop string do.
    """
    ends = list(accumulate(map(len, pieces)))
    closed = [bisect_left(ends, cut) + 1 for cut in cuts]
    summed = [0.0] * (len(boundaries) - 1)
    for end, reward in zip([*closed, len(pieces)], rewards, strict=True):
        summed[bisect_left(boundaries, end) - 1] += reward
    return tuple(summed)


def cut_lines(text: str) -> list[int]:
    """Cuts right after every line break that ends a line with text; blank lines go to the segment behind them."""
    cuts: list[int] = []
    end = 0
    for line in text.split("\n")[:-1]:
        end += len(line) + 1
        if line.strip():
            cuts.append(end)
    return cuts


def cut_sentences(text: str) -> list[int]:
    """Cuts behind the blank or line break that follows the end of a sentence, and behind every line with text."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return sorted({*ends, *cut_lines(text)})


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=True)


def _decode_in_windows(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """Decodes every token behind a few earlier ones, which tell whether it begins with a space or ends a character."""
    pieces: list[str] = []
    start, given = 0, 0  # the window's first token; characters of the window's text already given to tokens
    whole = 0  # the last token index at which no character is unfinished
    for i in range(len(token_ids)):
        text = _decode(tokenizer, token_ids[start : i + 1])
        unfinished = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_UNFINISHED) if i + 1 < len(token_ids) else 0
        end = max(given, len(text) - unfinished)
        pieces.append(text[given:end])
        given = end
        if not unfinished and text:
            start, whole = whole, i + 1
            given = len(_decode(tokenizer, token_ids[start:whole]))
        elif i - start > MAX_WINDOW:
            start, given = _shorten(tokenizer, token_ids, start, i + 1, text, given)
            whole = start
    return pieces


def _shorten(
    tokenizer: Any, token_ids: list[int], start: int, end: int, text: str, given: int
) -> tuple[int, int]:  # (start, given)
    """A later start for a window full of bytes that never become text, where the shorter window decodes alike."""
    for middle in range(end - 1 - MAX_UNFINISHED, start, -1):
        tail = _decode(tokenizer, token_ids[middle:end])
        cut = len(text) - len(tail)
        if cut <= given and text.endswith(tail) and _decode(tokenizer, token_ids[start:middle]) == text[:cut]:
            return middle, given - cut
    return start, given


def _fit(pieces: list[str], text: str) -> list[str]:
    """Pieces that spell `text` exactly, where a decoder rewrites earlier text on seeing later tokens.

    What agrees at both ends stays; the text between goes to the last token between, so no cut can fall inside it.
    """
    ends = list(accumulate(map(len, pieces)))
    joined = "".join(pieces)
    same = _common_prefix(joined, text)
    first = sum(1 for end in ends if end <= same)
    room = min(len(joined), len(text)) - (ends[first - 1] if first else 0)
    same_tail = min(_common_prefix(joined[::-1], text[::-1]), room)
    last = next((j for j in range(first, len(pieces)) if len(joined) - ends[j] <= same_tail), len(pieces) - 1)
    if last < first:
        last = first = len(pieces) - 1
    head = ends[first - 1] if first else 0
    tail = len(joined) - ends[last]
    middle = text[head : len(text) - tail]
    return [*pieces[:first], *[""] * (last - first), middle, *pieces[last + 1 :]]


def _common_prefix(left: str, right: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
