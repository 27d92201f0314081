"""Seats and waves, without tensors."""

import random
from collections import deque

from vineppo.engine.scheduler import Branch, Scheduler, Trunk, plan_waves, refill
from vineppo.types import Request


def make_branches(prefixes, budget=5):
    return [Branch(Request(tuple(prefix), budget, seed), budget) for seed, prefix in enumerate(prefixes)]


def one_wave(branches, max_batch=100, max_kv_tokens=10_000):
    (wave,) = plan_waves(branches, max_batch=max_batch, seat_tokens=max_kv_tokens // 2, max_kv_tokens=max_kv_tokens)
    return wave


def test_prefixes_of_each_other_share_a_trunk():
    branches = make_branches([(1, 2), (1, 2, 3), (1, 2), (1,), (1, 2, 4), (5,), (1, 2, 3, 9)])
    trunks = {trunk.token_ids: trunk for trunk in one_wave(branches).trunks}
    assert set(trunks) == {(1, 2, 3, 9), (1, 2, 4), (5,)}
    assert sum(trunk.live for trunk in trunks.values()) == 7
    for branch in branches:
        assert branch.state.trunk.token_ids[: branch.prefix_length] == branch.request.prefix_ids


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
        incoming = deque(Trunk((), [], live=1) for _ in range(rng.randint(0, 4)))
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


def test_every_branch_is_seated_once_and_longest_states_first():
    branches = make_branches([(t, s) for t in range(9) for s in range(3) for _ in range(4)])
    for branch in branches:
        branch.budget = 1 + branch.request.prefix_ids[0]
    scheduler = Scheduler(one_wave(branches, max_batch=10))
    opened_budgets = []
    while scheduler.busy:
        scheduler.seat_rows()
        assert len(scheduler.rows) <= 10
        opened, _, _ = scheduler.open_states()
        opened_budgets += [state.branches[0].budget for state in opened]
        for branch in scheduler.rows + [b for state in opened for b in state.branches]:
            branch.token_ids.append(0)
            if len(branch.token_ids) == branch.budget:
                branch.finish_reason = "length"
                branch.state.trunk.live -= 1
        for state in opened:
            for branch in state.branches:
                scheduler.first_drawn(branch)
    assert all(len(branch.token_ids) == branch.budget for branch in branches)
    assert opened_budgets == sorted(opened_budgets, reverse=True)
