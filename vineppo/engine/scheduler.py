"""Which tokens are computed next: states are opened, their branches take seats, finished ones give theirs up.

A trunk is a sequence whose keys and values several states share; a state is a prefix of its trunk; a branch is one
requested continuation of a state. A seat is an index into the batch. No tensors here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vineppo.types import FinishReason, Request


@dataclass(eq=False)
class Branch:
    request: Request
    budget: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seat: int = -1
    state: State = field(init=False)

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def prefix_length(self) -> int:
        return len(self.request.prefix_ids)


@dataclass(eq=False)
class State:
    prefix_ids: tuple[int, ...]
    branches: list[Branch]
    trunk: Trunk = field(init=False)


@dataclass(eq=False)
class Trunk:
    token_ids: tuple[int, ...]
    states: list[State]
    seat: int = -1
    live: int = 0  # branches that are not finished

    @property
    def done(self) -> bool:
        return self.live == 0


@dataclass(eq=False)
class Wave:
    """Trunks that are run together, and the seats that are laid out for them."""

    trunks: list[Trunk]
    trunk_length: int
    row_length: int
    num_rows: int
    num_trunks: int

    @property
    def kv_tokens(self) -> int:
        return self.num_trunks * self.trunk_length + self.num_rows * self.row_length


def plan_waves(branches: Sequence[Branch], *, max_batch: int, seat_tokens: int, max_kv_tokens: int) -> list[Wave]:
    """Splits a call so that each wave fits in memory: in `seat_tokens` if it can, in `max_kv_tokens` if it must.

    Seats are as long as the longest prefix and the largest budget in the wave, so a wave ends where the two, taken
    from different states, would not fit beside each other.
    """
    waves: list[list[State]] = []
    prefix = own = 0
    for state in _distinct_states(branches):
        longer, larger = len(state.prefix_ids), max(branch.budget - 1 for branch in state.branches)
        if waves and max(prefix, longer) + max(own, larger) <= max_kv_tokens:
            prefix, own = max(prefix, longer), max(own, larger)
            waves[-1].append(state)
        else:
            prefix, own = longer, larger
            waves.append([state])
    return [_lay_out(states, max_batch, seat_tokens) for states in waves]


def _distinct_states(branches: Sequence[Branch]) -> list[State]:
    siblings: dict[tuple[int, ...], list[Branch]] = {}
    for branch in branches:
        siblings.setdefault(branch.request.prefix_ids, []).append(branch)
    states = [State(prefix, members) for prefix, members in siblings.items()]
    for state in states:
        for branch in state.branches:
            branch.state = state
    return states


def _lay_out(states: list[State], max_batch: int, seat_tokens: int) -> Wave:
    trunks = _share_trunks(states)
    for trunk in trunks:
        trunk.states.sort(key=_longest_budget, reverse=True)
    # Longest first: what is started last should be short, or the batch runs almost empty at the end.
    trunks.sort(key=lambda trunk: _longest_budget(trunk.states[0]), reverse=True)
    num_branches = sum(trunk.live for trunk in trunks)
    wave = Wave(
        trunks=trunks,
        trunk_length=max(len(trunk.token_ids) for trunk in trunks),
        row_length=max(_longest_budget(state) for state in states) - 1,
        num_rows=min(max_batch, num_branches),
        num_trunks=0,
    )
    while True:
        # Twice the trunks that full rows need on average, for unequal ones; with fewer, states only wait longer.
        wave.num_trunks = min(len(trunks), 2 * wave.num_rows * len(trunks) // num_branches + 1, wave.num_rows)
        if wave.kv_tokens <= seat_tokens or wave.num_rows == 1:
            return wave
        wave.num_rows = max(wave.num_rows * 7 // 8, 1)


def _longest_budget(state: State) -> int:
    return max(branch.budget for branch in state.branches)


def _share_trunks(states: Iterable[State]) -> list[Trunk]:
    """One trunk for all states that are prefixes of each other.

    In sorted order a prefix stands right before the sequences that extend it, so one look at the previous trunk, going
    backwards, finds them.
    """
    trunks: list[Trunk] = []
    for state in sorted(states, key=lambda state: state.prefix_ids, reverse=True):
        if not (trunks and trunks[-1].token_ids[: len(state.prefix_ids)] == state.prefix_ids):
            trunks.append(Trunk(state.prefix_ids, []))
        state.trunk = trunks[-1]
        state.trunk.states.append(state)
        state.trunk.live += len(state.branches)
    return trunks


class Scheduler:
    """Seats for one wave. Seated rows and trunks always fill the first seats, without holes among them."""

    def __init__(self, wave: Wave) -> None:
        self.max_rows, self.max_trunks = wave.num_rows, wave.num_trunks
        self.waiting = deque(state for trunk in wave.trunks for state in trunk.states)
        self.ready: deque[Branch] = deque()  # their first token is drawn; they wait for a seat
        self.rows: list[Branch] = []
        self.trunks: list[Trunk] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.ready or self.rows)

    def seat_rows(self) -> list[tuple[int, int]]:
        """Seats the branches that are ready; returns the moves (from, to) of those that closed up."""
        return refill(self.rows, self.ready, self.max_rows)

    def open_states(self) -> tuple[list[State], list[Trunk], list[tuple[int, int]]]:
        """States whose first tokens are drawn next, the trunks they need filled, and the moves of the others."""
        opened: list[State] = []
        arriving: deque[Trunk] = deque()
        free_rows = self.max_rows - len(self.rows) - len(self.ready)
        free_trunks = self.max_trunks - sum(not trunk.done for trunk in self.trunks)
        while self.waiting and free_rows > 0:
            trunk = self.waiting[0].trunk
            if trunk.seat < 0 and trunk not in arriving:
                if len(arriving) == free_trunks:
                    break
                arriving.append(trunk)
            opened.append(self.waiting.popleft())
            free_rows -= len(opened[-1].branches)
        new_trunks = list(arriving)
        moves = refill(self.trunks, arriving, self.max_trunks)
        return opened, new_trunks, moves

    def first_drawn(self, branch: Branch) -> None:
        """A branch got its first token; unless that ended it, it waits for a seat."""
        if not branch.done:
            self.ready.append(branch)


def refill(seats: list, incoming: deque, capacity: int) -> list[tuple[int, int]]:
    """Finished seats go to incoming ones; any left over are closed up from the end. Returns the moves (from, to)."""
    holes = deque(i for i, item in enumerate(seats) if item.done)
    while incoming and (holes or len(seats) < capacity):
        if holes:
            seats[holes.popleft()] = incoming.popleft()
        else:
            seats.append(incoming.popleft())
    moves: list[tuple[int, int]] = []
    while holes:
        last = seats.pop()
        if holes[-1] == len(seats):
            holes.pop()
        else:
            moves.append((len(seats), holes[0]))
            seats[holes.popleft()] = last
    for seat, item in enumerate(seats):
        item.seat = seat
    return moves
