"""What is decoded: branches, the trunks they begin on, the sequences they have drawn. scheduler.py has an example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vineppo.engine.sampler import as_int64
from vineppo.engine.stopping import StopRule
from vineppo.types import Alternatives, Completion, FinishReason, Request

Fact = tuple[float, Alternatives | None]
"""What is known of a drawn token: its log-probability, and what else might have come."""


@dataclass(eq=False)
class Branch:
    """One requested continuation."""

    index: int  # of its request in the call
    request: Request
    budget: int
    token_ids: tuple[int, ...] = ()
    facts: tuple[Fact, ...] = ()  # one for each token
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
        logprobs, alternatives = zip(*self.facts, strict=True)
        asked = alternatives[0] is not None
        return Completion(self.token_ids, logprobs, self.finish_reason, version, alternatives if asked else None)


@dataclass(eq=False)
class Trunk:
    """A sequence that is computed before anything is drawn. Its first `shared` tokens belong to its parent.

    Of A = 1 2 3 4 and B = 1 2 3 9, A is the parent and `shared` is 3: whoever has drawn 1 2 3 waits at A.
    """

    token_ids: tuple[int, ...]
    parent: Trunk | None = None
    shared: int = 0
    forks: dict[tuple[int, int], Trunk] = field(default_factory=dict)  # (position, token) -> who goes on with it
    waiting: dict[int, list[Branch]] = field(default_factory=dict)  # by the number of tokens before what they draw next
    facts: dict[int, Fact] = field(default_factory=dict)  # of its tokens, as branches draw them
    live: int = 0  # unfinished branches that wait here or are in sequences that begin here
    slot: int = -1

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
class Sequence:
    """The first tokens of a trunk, then its own, and the branches that have drawn them."""

    trunk: Trunk
    prefix_length: int
    branches: list[Branch]
    token_ids: list[int] = field(default_factory=list)  # own ones, of which the last is computed next
    facts: list[Fact] = field(default_factory=list)  # of the own tokens
    forks: list[Sequence] = field(default_factory=list)  # wait for a slot and for what lies in this one's; longest last
    slot: int = -1  # that holds the own tokens' keys and values
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

    def facts_from(self, start: int) -> tuple[Fact, ...]:
        walked = (self.trunk.owner(i + 1).facts[i] for i in range(start, self.prefix_length))
        return (*walked, *self.facts)

    def hold(self, branches: list[Branch]) -> None:
        self.branches, self.first_end = branches, min((branch.end for branch in branches), default=0)

    def drop(self, ended: list[Branch]) -> None:
        self.trunk.live -= len(ended)
        gone = set(ended)
        self.hold([branch for branch in self.branches if branch not in gone])

    def end(self, rule: StopRule) -> list[Branch]:
        """Takes out and returns the branches that end with the last token, their results filled in."""
        if self.length < self.first_end and not rule.may_end(self.last_token):
            return []
        ended = []
        for branch in self.branches:
            token_ids = self.tokens_from(branch.prefix_length)
            branch.finish_reason = rule.reason(branch.request, token_ids, branch.budget)
            if branch.finish_reason:
                branch.token_ids, branch.facts = token_ids, self.facts_from(branch.prefix_length)
                ended.append(branch)
        self.drop(ended)
        return ended


def extend(sequence: Sequence, tokens: list[int], facts: list[Fact]) -> Iterator[Sequence]:
    """What the sequence becomes as each of its branches draws a token: one sequence for each different token.

    Off the trunks the first of them stays the sequence itself, whose keys and values it goes on with. On a trunk all
    are new.
    """
    drawn: dict[int, tuple[Fact, list[Branch]]] = {}
    if len(set(tokens)) == 1:
        drawn[tokens[0]] = (facts[0], sequence.branches)
    else:
        for token, fact, branch in zip(tokens, facts, sequence.branches, strict=True):
            drawn.setdefault(token, (fact, []))[1].append(branch)
    if not sequence.token_ids:
        yield from (_leave(sequence, token, fact, branches) for token, (fact, branches) in drawn.items())
        return
    (token, (fact, branches)), *others = drawn.items()
    forks = [
        Sequence(
            sequence.trunk,
            sequence.prefix_length,
            branches,
            [*sequence.token_ids, token],
            [*sequence.facts, fact],
        )
        for token, (fact, branches) in others
    ]
    sequence.token_ids.append(token)
    sequence.facts.append(fact)
    if others:
        sequence.hold(branches)
    yield sequence
    yield from forks


def _leave(sequence: Sequence, token: int, fact: Fact, branches: list[Branch]) -> Sequence:
    """From its place on a trunk to the next, or off all trunks."""
    trunk = sequence.trunk.follow(sequence.prefix_length, token)
    if trunk is None:
        return Sequence(sequence.trunk, sequence.prefix_length, branches, [token], [fact])
    trunk.facts[sequence.prefix_length] = fact
    sequence.trunk.live -= len(branches)
    trunk.live += len(branches)
    return Sequence(trunk, sequence.prefix_length + 1, branches)


def common_length(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens two sequences share from their beginning."""
    shortest = min(len(left), len(right))
    if left[:shortest] == right[:shortest]:
        return shortest
    return next(i for i in range(shortest) if left[i] != right[i])
