"""Where a response may be cut, from characters to tokens. The only place that maps text to tokens.

A task names character positions (cuts); `token_boundaries` turns them into token indices, never re-tokenising: the
policy's own tokens are the state, and decoding tells which text each of them wrote.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no UTF-8, or not yet
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


def token_boundaries(pieces: Sequence[str], cuts: Sequence[int]) -> tuple[int, ...]:
    """Token indices [S+1], 0 = b_0 < ... < b_S = len(pieces), of the segments that begin at the character `cuts`.

    A token that straddles a cut stays in the earlier segment, cuts that fall on one token merge, and tokens without
    text at the end (eos) join the last segment. Needs at least one token.
    """
    if not pieces:
        raise ValueError("a response of no tokens has no segments")
    starts = list(accumulate(map(len, pieces[:-1]), initial=0))  # [L], where each token's text begins
    length = starts[-1] + len(pieces[-1])
    indices = {bisect_left(starts, cut) for cut in cuts if 0 < cut < length}
    inner = sorted(index for index in indices if index < len(pieces) and starts[index] < length)
    return (0, *inner, len(pieces))


def token_segment_rewards(
    pieces: Sequence[str], cuts: Sequence[int], rewards: Sequence[float], boundaries: Sequence[int]
) -> tuple[float, ...]:  # [S]
    """Rewards of the text's segments, [len(cuts) + 1], for the token segments in which these end.

    Where cuts fall on one token and merge, so do their rewards. `boundaries` are `token_boundaries(pieces, cuts)`.
    """
    starts = list(accumulate(map(len, pieces[:-1]), initial=0))
    ends = [*(bisect_left(starts, cut) for cut in cuts), len(pieces)]
    summed = [0.0] * (len(boundaries) - 1)
    for end, reward in zip(ends, rewards, strict=True):
        summed[bisect_left(boundaries, end) - 1] += reward
    return tuple(summed)


def cut_lines(text: str, *, joins_previous: str | None = None) -> list[int]:
    """Cuts before every line but the first: a line break begins the next segment, and so do blank lines before it.

    A line that begins with `joins_previous` (an answer line) stays with the line above, and so do blank lines at the
    end.
    """
    cuts: list[int] = []
    gap = 0  # where the line break after the last line with text stands
    position = 0
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped:
            if gap > 0 and not (joins_previous and stripped.startswith(joins_previous)):
                cuts.append(gap)
            gap = position + len(line)
        position += len(line) + 1
    return cuts


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
