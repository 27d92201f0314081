"""Where a response is cut into segments, in tokens: by turns, in thoughts, and where its task says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise, zip_longest
from typing import Any

from vineppo.environment import Environment
from vineppo.episode import runs_of
from vineppo.protocols import Task
from vineppo.segments import are_cuts, decode_pieces, looks_ahead, token_boundaries, token_segment_rewards
from vineppo.thinking import ThinkingConfig, cut_thoughts, cut_turn
from vineppo.transcript import actions_of
from vineppo.types import Rollout, UserError


def cut_response(
    task: Task,
    tokenizer: Any,
    token_ids: tuple[int, ...],
    action_mask: tuple[bool, ...] | None,
    text: str,
    earned: Sequence[float] | None,
    thinking: ThinkingConfig | None = None,
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:  # [S+1], [S]
    """Boundaries, and what each segment has earned. Every turn of the policy's is cut by itself, and the environment's
    reply belongs to the segment in front of it.

    Cut as it was written, a stop string included: what is graded ends in front of it, which no token before says.
    """
    runs = runs_of(token_ids, action_mask)
    boundaries, rewards = [0], list(earned or ())
    summed: list[float] = []
    for run, reply, turn in zip_longest(runs[::2], runs[1::2], actions_of(text), fillvalue=()):
        pieces = decode_pieces(tokenizer, run)
        inside = token_boundaries(pieces, cuts_of(task, "".join(pieces), thinking))
        if earned is not None:
            cuts, thoughts = cuts_of(task, str(turn), thinking), cut_thoughts(str(turn), thinking)
            num_said = len(cuts) - len(thoughts) + 1
            own, rewards = rewards[:num_said], rewards[num_said:]
            summed += token_segment_rewards(pieces, cuts, [*[0.0] * len(thoughts), *own], inside)
        start = boundaries[-1]
        boundaries += [start + b for b in inside[1:-1]] + [start + len(run) + len(reply)]
    return tuple(boundaries), None if earned is None else tuple(summed)


def cuts_of(task: Task, text: str, thinking: ThinkingConfig | None = None) -> list[int]:
    cuts = cut_turn(task, text, thinking)
    if not are_cuts(cuts, text):
        raise UserError(
            f"{type(task).__name__}.segment() gave {cuts} for a text of {len(text)} characters: cuts must rise "
            f"strictly inside (0, {len(text)}]; see Task in vineppo/protocols.py"
        )
    return cuts


def needs_what_follows(environment: Environment, rollout: Rollout) -> bool:
    """Whether the text before the last inner boundary is cut otherwise alone than with what follows it.

    One look at each rollout is enough to notice a rule that looks ahead, and two more cuts are next to nothing beside
    sampling.
    """
    for start, end in reversed(turn_spans(rollout)):
        inner = [boundary for boundary in rollout.boundaries if start < boundary < end]
        if inner:
            pieces = decode_pieces(environment.tokenizer, rollout.token_ids[start:end])
            seen = len("".join(pieces[: inner[-1] - start]))
            cut = partial(cut_turn, environment.task, thinking=environment.thinking)
            return looks_ahead(cut, "".join(pieces), seen)
    return False


def turn_spans(rollout: Rollout) -> list[tuple[int, int]]:
    """Where each turn of the policy's begins and ends."""
    ends = accumulate(map(len, runs_of(rollout.token_ids, rollout.action_mask)), initial=0)
    return list(pairwise(ends))[::2]
