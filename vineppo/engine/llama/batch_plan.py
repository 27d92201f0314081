"""A call's branches in batches that fit in memory, and how each batch's memory is divided. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vineppo.engine.llama.sequences import Branch, Trunk, common_length


@dataclass(eq=False)
class BatchPlan:
    """Trunks that are run together, and the slots that are laid out for them and for branches' own tokens."""

    trunks: list[Trunk]
    trunk_length: int
    own_length: int
    num_own: int  # slots; so many sequences are off the trunks at once
    num_trunks: int  # slots; the other trunks wait

    @property
    def kv_tokens(self) -> int:
        return self.num_trunks * self.trunk_length + self.num_own * self.own_length


def plan_batches(
    branches: Sequence[Branch], *, max_batch: int, slot_tokens: int, max_kv_tokens: int
) -> list[BatchPlan]:
    """Splits a call so that each batch fits in memory: in `slot_tokens` if it can, in `max_kv_tokens` if it must.

    Slots are as long as the longest prefix and the largest budget of their batch, so a batch ends where the two, taken
    from different states, would not fit beside each other.
    """
    states: dict[tuple[int, ...], list[Branch]] = {}
    for branch in branches:
        states.setdefault(branch.request.prefix_ids, []).append(branch)
    batches: list[dict[tuple[int, ...], list[Branch]]] = []
    prefix = own = 0
    for prefix_ids, siblings in states.items():
        longer, larger = len(prefix_ids), max(branch.budget - 1 for branch in siblings)
        if batches and max(prefix, longer) + max(own, larger) <= max_kv_tokens:
            prefix, own = max(prefix, longer), max(own, larger)
            batches[-1][prefix_ids] = siblings
        else:
            prefix, own = longer, larger
            batches.append({prefix_ids: siblings})
    return [_lay_out(batch, max_batch, slot_tokens) for batch in batches]


def _lay_out(states: Mapping[tuple[int, ...], list[Branch]], max_batch: int, slot_tokens: int) -> BatchPlan:
    trunks = _make_trunks(states)
    # Longest first: what is started last should be short, or the batch runs almost empty at the end.
    trunks.sort(key=_longest_budget, reverse=True)
    num_branches = sum(map(len, states.values()))
    plan = BatchPlan(
        trunks=trunks,
        trunk_length=max(len(trunk.token_ids) for trunk in trunks),
        own_length=max(branch.budget for siblings in states.values() for branch in siblings) - 1,
        num_own=min(max_batch, num_branches),
        num_trunks=0,
    )
    while True:
        # Twice what full slots need on average if no two draw the same; with fewer, branches only wait longer. If some
        # do, they leave slots to those of further trunks.
        needed = min(len(trunks), 2 * plan.num_own * len(trunks) // num_branches + 1, plan.num_own)
        room = (slot_tokens - plan.num_own * plan.own_length) // plan.trunk_length
        plan.num_trunks = max(needed, min(4 * needed, len(trunks), plan.num_own, room))
        if plan.kv_tokens <= slot_tokens or plan.num_own == 1:
            return plan
        plan.num_own = max(plan.num_own * 7 // 8, 1)


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
