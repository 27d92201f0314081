"""Seats and waves, without tensors."""

import random
from collections import deque

from vineppo.engine.llama.scheduler import Branch, Scheduler, Trunk, extend, plan_waves, refill
from vineppo.types import Request


def make_branches(prefixes, budget=5):
    return [Branch(seed, Request(tuple(prefix), budget, seed), budget) for seed, prefix in enumerate(prefixes)]


def one_wave(branches, max_batch=100, max_kv_tokens=10_000):
    (wave,) = plan_waves(branches, max_batch=max_batch, seat_tokens=max_kv_tokens // 2, max_kv_tokens=max_kv_tokens)
    return wave


def test_prefixes_of_each_other_share_a_trunk_and_what_trunks_share_is_the_first_ones():
    branches = make_branches(
        [(1, 2), (1, 2, 3), (1, 2), (1,), (1, 2, 4), (5,), (1, 2, 3, 9), (1, 2, 4, 6), (1, 2, 4, 7)]
    )
    trunks = {trunk.token_ids: trunk for trunk in one_wave(branches).trunks}
    assert set(trunks) == {(1, 2, 3, 9), (1, 2, 4, 6), (1, 2, 4, 7), (5,)}
    waiting = {key: {n: len(b) for n, b in trunk.waiting.items()} for key, trunk in trunks.items()}
    assert waiting == {
        (1, 2, 3, 9): {1: 1, 2: 2, 3: 1, 4: 1},
        (1, 2, 4, 6): {3: 1, 4: 1},
        (1, 2, 4, 7): {4: 1},
        (5,): {1: 1},
    }
    assert {key: trunk.live for key, trunk in trunks.items()} == {key: sum(n.values()) for key, n in waiting.items()}
    first, second, third = trunks[1, 2, 3, 9], trunks[1, 2, 4, 6], trunks[1, 2, 4, 7]
    assert (second.parent, second.shared, third.parent, third.shared) == (first, 2, second, 3)
    assert first.follow(1, 2) is first
    assert first.follow(2, 4) is second
    assert second.follow(3, 7) is third
    assert first.follow(2, 7) is first.follow(4, 0) is None
    assert second.blocked
    assert third.blocked
    assert not first.blocked


def test_waves_fit_in_memory():
    rng = random.Random(0)
    for trial in range(200):
        max_kv_tokens = rng.randint(60, 400)
        branches = make_branches([[rng.randrange(3)] * rng.randint(1, 40) for _ in range(rng.randint(1, 50))])
        for branch in branches:
            branch.budget = rng.randint(1, 20)
        waves = plan_waves(
            branches, max_batch=rng.randint(1, 20), seat_tokens=(max_kv_tokens + 1) // 2, max_kv_tokens=max_kv_tokens
        )
        assert sum(trunk.live for wave in waves for trunk in wave.trunks) == len(branches), trial
        for wave in waves:
            assert wave.kv_tokens <= max_kv_tokens
            assert wave.num_rows >= 1
            assert wave.num_trunks >= 1


def test_refill_leaves_no_holes_and_says_who_moved():
    rng = random.Random(1)
    seats: list[Trunk] = []
    for _ in range(300):
        for trunk in seats:
            trunk.live = int(rng.random() > 0.3)
        before = list(seats)
        incoming = deque(Trunk((), live=1) for _ in range(rng.randint(0, 4)))
        arriving = list(incoming)
        moves = refill(seats, incoming, capacity=12)
        assert len(seats) <= 12
        assert not any(trunk.done for trunk in seats)
        assert [trunk.seat for trunk in seats] == list(range(len(seats)))
        moved = dict(moves)
        for old_seat, trunk in enumerate(before):
            if not trunk.done:
                assert trunk.seat == moved.get(old_seat, old_seat)
        assert not set(moved) & set(moved.values()), "a seat is read after it was written"
        assert set(map(id, arriving)) - set(map(id, incoming)) <= set(map(id, seats))


def test_rows_find_their_tokens_in_their_seats_however_they_fork_and_move():
    """Seats as lists of tokens, in place of keys and values; what a branch draws is decided by its seed alone."""
    rng = random.Random(2)
    for trial in range(60):
        likely = rng.choice([0.0, 0.7, 0.95])  # how often all draw the same

        def drawn(branch, n, likely=likely):
            local = random.Random(f"{branch.request.seed} {n}")
            return 0 if local.random() < likely else local.randrange(4)

        roots = [[rng.randrange(3) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 4))]
        prefixes = [root[: rng.randint(1, len(root))] for root in roots * 5 for _ in range(rng.randint(1, 6))]
        branches = make_branches(prefixes)
        for branch in branches:
            branch.end = branch.prefix_length + rng.randint(1, 9)
        scheduler = Scheduler(one_wave(branches, max_batch=rng.randint(1, 12)))
        own: list[list[int]] = [[] for _ in range(scheduler.max_rows)]
        computed, finished = [], {}
        while scheduler.busy:
            moves = scheduler.seat_rows()
            for to, tokens in [(to, list(own[of])) for of, to in moves]:
                own[to] = tokens
            rows = list(scheduler.rows)
            assert len(rows) <= scheduler.max_rows
            opened, _, _ = scheduler.open_rows()
            for row in opened:
                assert scheduler.trunks[row.trunk.seat] is row.trunk
            for row in rows:
                assert scheduler.trunks[row.trunk.seat] is row.trunk
                num_own = len(row.token_ids) - 1
                assert own[row.seat][:num_own] == row.token_ids[:-1]
                own[row.seat] = [*row.token_ids]
            for row in rows + opened:
                computed.append(row.tokens_from(0))
                tokens = [drawn(branch, row.length) for branch in row.branches]
                for extended in extend(row, tokens, [-float(token) for token in tokens]):
                    ended = [branch for branch in extended.branches if branch.end == extended.length]
                    for branch in ended:
                        n = branch.prefix_length
                        finished[branch] = extended.tokens_from(n), extended.logprobs_from(n)
                    extended.drop(ended)
                    scheduler.place(extended, after=row)
        for branch in branches:
            expected = tuple(drawn(branch, n) for n in range(branch.prefix_length, branch.end))
            assert finished[branch] == (expected, tuple(-float(token) for token in expected)), trial
        assert len(computed) == len(set(computed)), "a sequence was computed twice"


def test_the_longest_are_opened_first():
    branches = make_branches([(t, s) for t in range(9) for s in range(3) for _ in range(4)])
    for branch in branches:
        branch.budget = 1 + branch.request.prefix_ids[0]
    scheduler = Scheduler(one_wave(branches, max_batch=4))
    opened_budgets = []
    while scheduler.waiting:
        opened, _, _ = scheduler.open_rows()
        opened_budgets += [row.branches[0].budget for row in opened]
        for row in opened:
            row.drop(row.branches)
    assert opened_budgets == sorted(opened_budgets, reverse=True)
