"""Which sequences are computed next. Branches that have drawn the same tokens are computed once.

A branch is one requested continuation. A trunk is a sequence whose keys and values are there before anything is
drawn; requests' prefixes are prefixes of trunks. As long as the tokens that a branch draws are those of a trunk, it
walks along it and needs no keys and values of its own; one forward serves all branches that stand at the same place.
A branch that leaves all trunks becomes part of a row. Rows have seats, which are indices into the batch, and fork where
their branches draw different tokens. No tensors here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vineppo.engine.llama.kv_cache import common_length
from vineppo.engine.sampler import as_int64
from vineppo.types import Completion, FinishReason, Request


@dataclass(eq=False)
class Branch:
    index: int  # of its request in the call
    request: Request
    budget: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    seed: int = field(init=False)
    prefix_length: int = field(init=False)
    end: int = field(init=False)  # length, prefix included, at which the budget is spent

    def __post_init__(self) -> None:
        self.seed = as_int64(self.request.seed)
        self.prefix_length = len(self.request.prefix_ids)
        self.end = self.prefix_length + self.budget

    def completion(self, version: int) -> Completion:
        assert self.finish_reason is not None
        return Completion(self.token_ids, self.logprobs, self.finish_reason, version)


@dataclass(eq=False)
class Trunk:
    """Its first `shared` tokens are its parent's too; branches that stand there belong to the parent."""

    token_ids: tuple[int, ...]
    parent: Trunk | None = None
    shared: int = 0
    forks: dict[tuple[int, int], Trunk] = field(default_factory=dict)  # (position, token) -> who goes on with it
    waiting: dict[int, list[Branch]] = field(default_factory=dict)  # by the number of tokens before what they draw next
    logprobs: dict[int, float] = field(default_factory=dict)  # of its tokens, as branches draw them
    live: int = 0  # unfinished branches that wait here or are in rows that begin here
    seat: int = -1

    @property
    def done(self) -> bool:
        return self.live == 0

    @property
    def blocked(self) -> bool:
        """Whether branches that wait further up may still come to where the first ones wait here."""
        trunk = self
        while trunk.parent is not None:
            if min(trunk.parent.waiting, default=trunk.shared + 1) <= trunk.shared:
                return True
            trunk = trunk.parent
        return False

    def owner(self, length: int) -> Trunk:
        """To whom its first `length` tokens belong."""
        trunk = self
        while trunk.parent is not None and length <= trunk.shared:
            trunk = trunk.parent
        return trunk

    def follow(self, position: int, token: int) -> Trunk | None:
        """The trunk that goes on with this token."""
        if position < len(self.token_ids) and self.token_ids[position] == token:
            return self
        return self.forks.get((position, token))

    def wait(self, length: int, branches: list[Branch]) -> None:
        self.waiting.setdefault(length, []).extend(branches)


@dataclass(eq=False)
class Row:
    """A sequence and the branches that have drawn it: the first tokens of a trunk, then its own."""

    trunk: Trunk
    prefix_length: int
    branches: list[Branch]
    token_ids: list[int] = field(default_factory=list)  # own ones, of which the last is computed next
    logprobs: list[float] = field(default_factory=list)
    forks: list[Row] = field(default_factory=list)  # wait for a seat and for what this one's holds; the longest last
    seat: int = -1
    first_end: int = field(init=False)

    def __post_init__(self) -> None:
        self.hold(self.branches)

    @property
    def done(self) -> bool:
        return not self.branches

    @property
    def length(self) -> int:
        return self.prefix_length + len(self.token_ids)

    @property
    def last_token(self) -> int:
        return self.token_ids[-1] if self.token_ids else self.trunk.token_ids[self.prefix_length - 1]

    def tokens_from(self, start: int) -> tuple[int, ...]:
        return (*self.trunk.token_ids[start : self.prefix_length], *self.token_ids)

    def logprobs_from(self, start: int) -> tuple[float, ...]:
        walked = (self.trunk.owner(i + 1).logprobs[i] for i in range(start, self.prefix_length))
        return (*walked, *self.logprobs)

    def hold(self, branches: list[Branch]) -> None:
        self.branches, self.first_end = branches, min((branch.end for branch in branches), default=0)

    def drop(self, ended: Sequence[Branch]) -> None:
        self.trunk.live -= len(ended)
        gone = set(ended)
        self.hold([branch for branch in self.branches if branch not in gone])


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
    states: dict[tuple[int, ...], list[Branch]] = {}
    for branch in branches:
        states.setdefault(branch.request.prefix_ids, []).append(branch)
    waves: list[dict[tuple[int, ...], list[Branch]]] = []
    prefix = own = 0
    for prefix_ids, siblings in states.items():
        longer, larger = len(prefix_ids), max(branch.budget - 1 for branch in siblings)
        if waves and max(prefix, longer) + max(own, larger) <= max_kv_tokens:
            prefix, own = max(prefix, longer), max(own, larger)
            waves[-1][prefix_ids] = siblings
        else:
            prefix, own = longer, larger
            waves.append({prefix_ids: siblings})
    return [_lay_out(wave, max_batch, seat_tokens) for wave in waves]


def _lay_out(states: Mapping[tuple[int, ...], list[Branch]], max_batch: int, seat_tokens: int) -> Wave:
    trunks = _make_trunks(states)
    # Longest first: what is started last should be short, or the batch runs almost empty at the end.
    trunks.sort(key=_longest_budget, reverse=True)
    num_branches = sum(map(len, states.values()))
    wave = Wave(
        trunks=trunks,
        trunk_length=max(len(trunk.token_ids) for trunk in trunks),
        row_length=max(branch.budget for siblings in states.values() for branch in siblings) - 1,
        num_rows=min(max_batch, num_branches),
        num_trunks=0,
    )
    while True:
        # Twice what full rows need on average if no two draw the same; with fewer, branches only wait longer. If some
        # do, they leave rows to those of further trunks.
        needed = min(len(trunks), 2 * wave.num_rows * len(trunks) // num_branches + 1, wave.num_rows)
        room = (seat_tokens - wave.num_rows * wave.row_length) // wave.trunk_length
        wave.num_trunks = max(needed, min(4 * needed, len(trunks), wave.num_rows, room))
        if wave.kv_tokens <= seat_tokens or wave.num_rows == 1:
            return wave
        wave.num_rows = max(wave.num_rows * 7 // 8, 1)


def _longest_budget(trunk: Trunk) -> int:
    return max(branch.budget for branches in trunk.waiting.values() for branch in branches)


def _make_trunks(states: Mapping[tuple[int, ...], list[Branch]]) -> list[Trunk]:
    """One trunk for all states that are prefixes of each other, and where trunks part from each other.

    In sorted order the sequence that shares most with those before it shares it with the one right before it.
    """
    trunks: list[Trunk] = []
    for prefix in sorted(states):
        previous = trunks[-1] if trunks else None
        shared = common_length(previous.token_ids, prefix) if previous else 0
        if previous and shared == len(previous.token_ids):
            previous.token_ids = prefix
        else:
            trunks.append(Trunk(prefix))
            if previous and shared:
                trunks[-1].parent, trunks[-1].shared = previous.owner(shared), shared
                trunks[-1].parent.forks[shared, prefix[shared]] = trunks[-1]
        owner = trunks[-1].owner(len(prefix))
        owner.wait(len(prefix), states[prefix])
        owner.live += len(states[prefix])
    return trunks


class Scheduler:
    """Seats for one wave. Seated rows and trunks always fill the first seats, without holes among them."""

    def __init__(self, wave: Wave) -> None:
        self.max_rows, self.max_trunks = wave.num_rows, wave.num_trunks
        self.waiting = dict.fromkeys(wave.trunks)  # those at which branches wait; in this order they are served
        self.ready: deque[Row] = deque()  # have just left a trunk and wait for a seat
        self.rows: list[Row] = []
        self.trunks: list[Trunk] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.ready or self.rows)

    def seat_rows(self) -> list[tuple[int, int]]:
        """Seats forks and what is ready; returns the copies (from, to), to be made all at once.

        In the seat of a finished row its longest fork goes on, which finds there what it needs; while seats are free,
        the forks of others are copied to them. So forks need no seats of their own to be kept.
        """
        for seat, row in enumerate(self.rows):
            if row.done and row.forks:
                self.rows[seat] = row.forks.pop()
                self.rows[seat].forks, self.rows[seat].seat = row.forks, seat
        free = self.max_rows - sum(not row.done for row in self.rows)
        incoming: deque[Row] = deque()
        sources: list[tuple[int, Row]] = []
        for row in self.rows:
            while row.forks and len(incoming) < free:
                incoming.append(row.forks.pop(0))
                sources.append((row.seat, incoming[-1]))
        while self.ready and len(incoming) < free:
            incoming.append(self.ready.popleft())
        return refill(self.rows, incoming, self.max_rows) + [(source, fork.seat) for source, fork in sources]

    def open_rows(self) -> tuple[list[Row], list[Trunk], list[tuple[int, int]]]:
        """Rows on trunks that are computed next, the trunks they need filled, and the moves of the others.

        A place is opened when no branch can come to it any more, so it is opened once.
        """
        chosen: list[Trunk] = []
        arriving: deque[Trunk] = deque()
        free_rows = self.max_rows - len(self.rows)
        free_trunks = self.max_trunks - sum(not trunk.done for trunk in self.trunks)
        for trunk in self.waiting if free_rows else ():
            if (trunk.seat < 0 and len(arriving) == free_trunks) or trunk.blocked:
                continue
            if trunk.seat < 0:
                arriving.append(trunk)
            chosen.append(trunk)
            if len(chosen) == free_rows:
                break
        opened = [self._open(trunk) for trunk in chosen]  # only now, as what is opened blocks others still
        new_trunks = list(arriving)
        return opened, new_trunks, refill(self.trunks, arriving, self.max_trunks)

    def _open(self, trunk: Trunk) -> Row:
        length = min(trunk.waiting)
        row = Row(trunk, length, trunk.waiting.pop(length))
        if not trunk.waiting:
            del self.waiting[trunk]
        return row

    def place(self, row: Row, after: Row) -> None:
        """Where a row goes on that has just drawn a token; `after` is the one it has come from."""
        if row.done or row is after:
            return
        if not row.token_ids:
            row.trunk.wait(row.length, row.branches)
            self.waiting[row.trunk] = None
        elif len(row.token_ids) == 1:
            self.ready.append(row)
        else:
            after.forks.append(row)


def extend(row: Row, tokens: Sequence[int], logprobs: Sequence[float]) -> Iterator[Row]:
    """What the row becomes as each of its branches draws a token: a row for each different one.

    On a trunk these are new ones. Elsewhere the first stays the row itself, whose keys and values it needs.
    """
    drawn: dict[int, tuple[float, list[Branch]]] = {}
    if len(set(tokens)) == 1:
        drawn[tokens[0]] = (logprobs[0], row.branches)
    else:
        for token, logprob, branch in zip(tokens, logprobs, row.branches, strict=True):
            drawn.setdefault(token, (logprob, []))[1].append(branch)
    if not row.token_ids:
        yield from (_leave(row, token, logprob, branches) for token, (logprob, branches) in drawn.items())
        return
    (token, (logprob, branches)), *others = drawn.items()
    forks = [
        Row(row.trunk, row.prefix_length, branches, [*row.token_ids, token], [*row.logprobs, logprob])
        for token, (logprob, branches) in others
    ]
    row.token_ids.append(token)
    row.logprobs.append(logprob)
    if others:
        row.hold(branches)
    yield row
    yield from forks


def _leave(row: Row, token: int, logprob: float, branches: list[Branch]) -> Row:
    """From its place on a trunk to the next, or off all trunks."""
    trunk = row.trunk.follow(row.prefix_length, token)
    if trunk is None:
        return Row(row.trunk, row.prefix_length, branches, [token], [logprob])
    trunk.logprobs[row.prefix_length] = logprob
    row.trunk.live -= len(branches)
    trunk.live += len(branches)
    return Row(trunk, row.prefix_length + 1, branches)


def refill(seats: list, incoming: deque, capacity: int) -> list[tuple[int, int]]:
    """Finished seats go to incoming ones; any left over are closed up from the end. Returns the moves (from, to)."""
    holes = deque(i for i, item in enumerate(seats) if item.done)
    for seat in holes:
        seats[seat].seat = -1
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
