"""Slots and batches, without tensors."""

import random
from collections import deque

from vineppo.engine.llama.batch_plan import plan_batches
from vineppo.engine.llama.scheduler import Scheduler, refill
from vineppo.engine.llama.sequences import Branch, Trunk
from vineppo.engine.stopping import StopRule
from vineppo.types import Request

BUDGETS_ALONE = StopRule(tokenizer=None, eos_ids=frozenset(), stop=())


def make_branches(prefixes, budget=5):
    return [Branch(seed, Request(tuple(prefix), budget, seed), budget) for seed, prefix in enumerate(prefixes)]


def one_batch(branches, max_batch=100, max_kv_tokens=10_000):
    (plan,) = plan_batches(branches, max_batch=max_batch, slot_tokens=max_kv_tokens // 2, max_kv_tokens=max_kv_tokens)
    return plan


def test_the_example_at_the_top_of_the_scheduler():
    branches = make_branches([(1, 2)] * 4 + [(1, 2, 3, 4), (1, 2, 3, 9)])
    a, b, c, d, e, f = branches
    scheduler = Scheduler(one_batch(branches), StopRule(None, eos_ids=frozenset({0}), stop=()))

    plan = scheduler.plan()
    (A,) = plan.new_trunks
    assert A.token_ids == (1, 2, 3, 4)
    assert [(s.tokens_from(0), s.branches) for s in plan.sequences] == [((1, 2), [a, b, c, d])]
    assert scheduler.advance(plan, [3, 3, 7, 7], [(-0.1, None)] * 4) == []
    assert A.waiting == {3: [a, b], 4: [e]}

    plan = scheduler.plan()
    (left,) = plan.off_trunk
    assert (left.trunk, left.prefix_length, left.token_ids, left.branches, left.slot) == (A, 2, [7], [c, d], 0)
    assert [(s.tokens_from(0), s.branches) for s in plan.on_trunk] == [((1, 2, 3), [a, b])]
    assert scheduler.advance(plan, [5, 6, 4, 9], [(-0.2, None)] * 4) == []

    plan = scheduler.plan()
    (B,) = plan.new_trunks
    assert (B.token_ids, B.parent, B.shared) == ((1, 2, 3, 9), A, 3)
    assert (plan.own_moves, plan.trunk_moves) == ([(0, 1)], [])
    assert [(s.token_ids, s.branches, s.slot) for s in plan.off_trunk] == [([7, 5], [c], 0), ([7, 6], [d], 1)]
    assert plan.off_trunk[0] is left
    assert [(s.trunk, s.tokens_from(0), s.branches) for s in plan.on_trunk] == [
        (A, (1, 2, 3, 4), [e, a]),
        (B, (1, 2, 3, 9), [f, b]),
    ]

    finished = scheduler.advance(plan, [0] * 6, [(-0.3, None)] * 6)
    assert [done.branches for done in finished] == [[c], [d], [e, a], [f, b]]
    assert [branch.token_ids for branch in branches] == [(3, 4, 0), (3, 9, 0), (7, 5, 0), (7, 6, 0), (0,), (0,)]
    assert [branch.completion(0).logprobs for branch in (b, f)] == [(-0.1, -0.2, -0.3), (-0.3,)]
    assert b.finish_reason == "eos"
    assert not scheduler.busy


def test_prefixes_of_each_other_share_a_trunk_and_what_trunks_share_is_the_first_ones():
    branches = make_branches(
        [(1, 2), (1, 2, 3), (1, 2), (1,), (1, 2, 4), (5,), (1, 2, 3, 9), (1, 2, 4, 6), (1, 2, 4, 7)]
    )
    trunks = {trunk.token_ids: trunk for trunk in one_batch(branches).trunks}
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


def test_batches_fit_in_memory():
    rng = random.Random(0)
    for trial in range(200):
        max_kv_tokens = rng.randint(60, 400)
        branches = make_branches([[rng.randrange(3)] * rng.randint(1, 40) for _ in range(rng.randint(1, 50))])
        for branch in branches:
            branch.budget = rng.randint(1, 20)
        batches = plan_batches(
            branches, max_batch=rng.randint(1, 20), slot_tokens=(max_kv_tokens + 1) // 2, max_kv_tokens=max_kv_tokens
        )
        assert sum(trunk.live for plan in batches for trunk in plan.trunks) == len(branches), trial
        for plan in batches:
            assert plan.kv_tokens <= max_kv_tokens
            assert plan.num_own >= 1
            assert plan.num_trunks >= 1


def test_refill_leaves_no_holes_and_says_who_moved():
    rng = random.Random(1)
    slots: list[Trunk] = []
    for _ in range(300):
        for trunk in slots:
            trunk.live = int(rng.random() > 0.3)
        before = list(slots)
        incoming = deque(Trunk((), live=1) for _ in range(rng.randint(0, 4)))
        arriving = list(incoming)
        moves = refill(slots, incoming, capacity=12)
        assert len(slots) <= 12
        assert not any(trunk.done for trunk in slots)
        assert [trunk.slot for trunk in slots] == list(range(len(slots)))
        moved = dict(moves)
        for old_slot, trunk in enumerate(before):
            if not trunk.done:
                assert trunk.slot == moved.get(old_slot, old_slot)
        assert not set(moved) & set(moved.values()), "a slot is read after it was written"
        assert set(map(id, arriving)) - set(map(id, incoming)) <= set(map(id, slots))


def drawn(branch, n, likely):
    """Token n of a branch's whole sequence, decided by its seed alone; `likely` is how often it is the common one."""
    rng = random.Random(f"{branch.request.seed} {n}")
    return 0 if rng.random() < likely else rng.randrange(4)


def forking_branches(rng):
    roots = [[rng.randrange(3) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 4))]
    prefixes = [root[: rng.randint(1, len(root))] for root in roots * 5 for _ in range(rng.randint(1, 6))]
    requests = [Request(tuple(prefix), rng.randint(1, 9), seed) for seed, prefix in enumerate(prefixes)]
    return [Branch(i, request, request.max_new_tokens) for i, request in enumerate(requests)]


def play(scheduler, likely):
    """Slots as lists of tokens, in place of keys and values. Returns all sequences that were computed, in order."""
    own: list[list[int]] = [[] for _ in range(scheduler.num_own)]
    computed = []
    while scheduler.busy:
        plan = scheduler.plan()
        assert plan.sequences, "a forward for nothing"
        assert len(plan.off_trunk) <= scheduler.num_own
        assert len(scheduler.trunks) <= scheduler.num_trunks
        for to, tokens in [(to, list(own[source])) for source, to in plan.own_moves]:
            own[to] = tokens
        for slot, sequence in enumerate(plan.off_trunk):
            assert sequence.slot == slot
            assert own[slot][: len(sequence.token_ids) - 1] == sequence.token_ids[:-1]
            own[slot] = [*sequence.token_ids]
        for sequence in plan.sequences:
            assert scheduler.trunks[sequence.trunk.slot] is sequence.trunk
            computed.append(sequence.tokens_from(0))
        tokens = [drawn(branch, s.length, likely) for s in plan.sequences for branch in s.branches]
        scheduler.advance(plan, tokens, [(-float(token), None) for token in tokens])
    return computed


def test_sequences_find_their_tokens_in_their_slots_however_they_fork_and_move():
    rng = random.Random(2)
    for trial in range(60):
        likely, branches = rng.choice([0.0, 0.7, 0.95]), forking_branches(rng)
        computed = play(Scheduler(one_batch(branches, max_batch=rng.randint(1, 12)), BUDGETS_ALONE), likely)
        assert len(computed) == len(set(computed)), "a sequence was computed twice"
        for branch in branches:
            expected = tuple(drawn(branch, n, likely) for n in range(branch.prefix_length, branch.end))
            assert branch.token_ids == expected, trial
            assert branch.completion(0).logprobs == tuple(-float(token) for token in expected), trial


def test_the_longest_are_opened_first():
    branches = make_branches([(t, s) for t in range(9) for s in range(3) for _ in range(4)])
    for branch in branches:
        branch.budget = 1 + branch.request.prefix_ids[0]
    scheduler = Scheduler(one_batch(branches, max_batch=4), BUDGETS_ALONE)
    opened_budgets = []
    while scheduler.waiting:
        for sequence in scheduler.plan().on_trunk:
            opened_budgets.append(sequence.branches[0].budget)
            sequence.drop(sequence.branches)
    assert opened_budgets == sorted(opened_budgets, reverse=True)
