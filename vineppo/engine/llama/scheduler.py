"""Which sequences are computed next. What several branches have drawn alike is computed once. No tensors here.

A branch is one requested continuation, a trunk a sequence whose keys and values are there before anything is drawn.
Four branches a b c d continue the state (1 2), e continues (1 2 3 4) and f (1 2 3 9):

    trunks       A = 1 2 3 4    a b c d wait after its first 2 tokens, written A:2, and e at A:4
                 B = 1 2 3 9    parts from A at 3; f waits at B:4
    1. plan      fill A; compute A:2                  B:4 is blocked: a b c d may still come there
       advance   a and b draw 3                       they walk along A without keys of their own and wait at A:3
                 c and d draw 7                       they leave the trunks as one sequence, A:2 + 7
    2. plan      compute A:2 + 7 in slot 0, A:3
       advance   c draws 5, d draws 6                 A:2 + 7 5 stays in slot 0, its fork A:2 + 7 6 needs one
                 a draws 4, b draws 9                 a waits with e at A:4, b with f at B:4
    3. plan      copy slot 0 to 1; fill B; compute A:2 + 7 5, A:2 + 7 6, A:4, B:4
       advance   ...

Seven forwards of one token so far, one for each distinct sequence, and not one for each branch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from vineppo.engine.llama.batch_plan import BatchPlan
from vineppo.engine.llama.sequences import Branch, Fact, Sequence, Trunk, extend
from vineppo.engine.stopping import StopRule


@dataclass(frozen=True)
class ForwardPlan:
    """What the next forward computes, and what must lie where before it. Moves are (from, to), made all at once."""

    own_moves: list[tuple[int, int]]
    trunk_moves: list[tuple[int, int]]
    new_trunks: list[Trunk]  # have just got their slots, which are to be filled
    off_trunk: list[Sequence]  # [B] number i is in slot i
    on_trunk: list[Sequence]

    @property
    def sequences(self) -> list[Sequence]:
        return self.off_trunk + self.on_trunk


class Finished(NamedTuple):
    branches: list[Branch]
    sequence: Sequence  # that they have drawn
    before: Sequence  # the last token: where what was computed of it lies


class Scheduler:
    """Gives out the slots of one batch. Those in use are always the first ones."""

    def __init__(self, plan: BatchPlan, rule: StopRule) -> None:
        self.num_own, self.num_trunks, self.rule = plan.num_own, plan.num_trunks, rule
        self.waiting = dict.fromkeys(plan.trunks)  # those at which branches wait; in this order they are served
        self.ready: deque[Sequence] = deque()  # have just left a trunk and wait for a slot
        self.own: list[Sequence] = []  # by slot, as are the trunks
        self.trunks: list[Trunk] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.ready) or any(not s.done or s.forks for s in self.own)

    def plan(self) -> ForwardPlan:
        own_moves = self._give_own_slots()
        on_trunk, new_trunks, trunk_moves = self._open_places()
        return ForwardPlan(own_moves, trunk_moves, new_trunks, list(self.own), on_trunk)

    def advance(self, plan: ForwardPlan, tokens: list[int], facts: list[Fact]) -> list[Finished]:
        """Every branch of every sequence of the plan, in order, has drawn a token; returns whom that has finished."""
        finished, start = [], 0
        for sequence in plan.sequences:
            end = start + len(sequence.branches)
            for extended in extend(sequence, tokens[start:end], facts[start:end]):
                if ended := extended.end(self.rule):
                    finished.append(Finished(ended, extended, before=sequence))
                self._place(extended, before=sequence)
            start = end
        return finished

    def _give_own_slots(self) -> list[tuple[int, int]]:
        """To forks and to what is ready; returns the moves.

        A finished sequence leaves its slot to its longest fork, which finds there what it needs. Other forks are copied
        to slots that are free, and until then need none.
        """
        for slot, sequence in enumerate(self.own):
            if sequence.done and sequence.forks:
                self.own[slot] = sequence.forks.pop()
                self.own[slot].forks, self.own[slot].slot = sequence.forks, slot
        free = self.num_own - sum(not sequence.done for sequence in self.own)
        incoming: deque[Sequence] = deque()
        sources: list[tuple[int, Sequence]] = []
        for sequence in self.own:
            while sequence.forks and len(incoming) < free:
                incoming.append(sequence.forks.pop(0))
                sources.append((sequence.slot, incoming[-1]))
        while self.ready and len(incoming) < free:
            incoming.append(self.ready.popleft())
        return refill(self.own, incoming, self.num_own) + [(source, fork.slot) for source, fork in sources]

    def _open_places(self) -> tuple[list[Sequence], list[Trunk], list[tuple[int, int]]]:
        """Sequences at places on trunks, the trunks among theirs that are new, and the moves of the others.

        A place is opened when no branch can come to it any more, so it is opened once.
        """
        chosen: list[Trunk] = []
        arriving: deque[Trunk] = deque()
        free = self.num_own - len(self.own)
        free_trunks = self.num_trunks - sum(not trunk.done for trunk in self.trunks)
        for trunk in self.waiting if free else ():
            if (trunk.slot < 0 and len(arriving) == free_trunks) or trunk.blocked:
                continue
            if trunk.slot < 0:
                arriving.append(trunk)
            chosen.append(trunk)
            if len(chosen) == free:
                break
        opened = [self._open(trunk) for trunk in chosen]  # only now, as what is opened blocks others still
        new_trunks = list(arriving)
        return opened, new_trunks, refill(self.trunks, arriving, self.num_trunks)

    def _open(self, trunk: Trunk) -> Sequence:
        length = min(trunk.waiting)
        sequence = Sequence(trunk, length, trunk.waiting.pop(length))
        if not trunk.waiting:
            del self.waiting[trunk]
        return sequence

    def _place(self, sequence: Sequence, before: Sequence) -> None:
        """Where a sequence goes on; `before` is the one that it has come from by one token."""
        if sequence.done or sequence is before:
            return
        if not sequence.token_ids:
            sequence.trunk.wait(sequence.length, sequence.branches)
            self.waiting[sequence.trunk] = None
        elif len(sequence.token_ids) == 1:
            self.ready.append(sequence)
        else:
            before.forks.append(sequence)


def refill(slots: list, incoming: deque, capacity: int) -> list[tuple[int, int]]:
    """Gives the slots of the done to the incoming and closes the holes that are left. Returns the moves (from, to)."""
    holes = deque(i for i, item in enumerate(slots) if item.done)
    for slot in holes:
        slots[slot].slot = -1
    while incoming and (holes or len(slots) < capacity):
        if holes:
            slots[holes.popleft()] = incoming.popleft()
        else:
            slots.append(incoming.popleft())
    moves: list[tuple[int, int]] = []
    while holes:
        last = slots.pop()
        if holes[-1] == len(slots):
            holes.pop()
        else:
            moves.append((len(slots), holes[0]))
            slots[holes.popleft()] = last
    for slot, item in enumerate(slots):
        item.slot = slot
    return moves
