"""How many vines each state gets: the tokens that K everywhere would cost, spent where they remove most variance.

The gradient of measured credit is sum_j (V^_{j+1} - V^_j) u_j, with u_j the sum of grad log pi over segment j. In it
V^_j is multiplied by u_{j-1} - u_j, so its noise adds sigma_j^2 |u_{j-1} - u_j|^2 / K_j to the variance. Tokens are
best spent with K_j in proportion to sigma_j |u_{j-1} - u_j| / sqrt(c_j) (Neyman 1934), where a vine from s_j costs
c_j tokens and sigma_j^2 is the variance of its reward.

Numbers of vines may depend on all that the rollouts wrote, before a state and after it: given the state, its vines are
independent of that, so their mean has mean V. They must not depend on what the state's own vines earned. And where a
state's value is a mean over its vines *and* over rollouts that run through it, a number that depends on what those
wrote later weighs their rewards by it, and the mean is off: use fixed numbers there.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from vineppo.credit.states import StateKey, state_at, state_key
from vineppo.types import Rollout


def allocate(
    rollouts: Sequence[Rollout],
    boundaries: Sequence[Sequence[int]],
    num_vines: int,
    *,
    variances: Mapping[StateKey, float] | None = None,
) -> dict[StateKey, int]:
    """Vines for every state at the rollouts' `boundaries` [S+1] but the last, at least one each.

    Together they cost no more than `num_vines` from every state, if a vine is as long as the rest of the rollouts that
    run through its state. `variances` of one vine's reward, if anything is known of them that does not come from the
    state's own vines; by default they are equal.
    """
    segments: Counter[tuple[StateKey, StateKey]] = Counter()
    scores: dict[tuple[StateKey, StateKey], float] = {}
    rests: defaultdict[StateKey, list[int]] = defaultdict(list)
    for rollout, cuts in zip(rollouts, boundaries, strict=True):
        keys = [state_key(state_at(rollout, cut)) for cut in cuts]
        squared = squared_scores(rollout)
        for key, cut in zip(keys[:-1], cuts[:-1], strict=True):
            rests[key].append(rollout.budget_at(cut) - rollout.budget_at(len(rollout.token_ids)))
        for segment, (start, end) in zip(pairwise(keys), pairwise(cuts), strict=True):
            segments[segment] += 1
            scores[segment] = math.fsum(squared[start:end])
    needs = dict.fromkeys(rests, 0.0)
    for (start, end), count in segments.items():  # siblings that share a segment add up to `count` times its u
        for key in (start, end):
            if key in needs:
                needs[key] += count**2 * scores[start, end]
    if variances is not None:
        needs = {key: need * variances[key] for key, need in needs.items()}
    counts = spend(list(needs.values()), [fmean(rests[key]) for key in needs], num_vines)
    return dict(zip(needs, counts, strict=True))


def spend(needs: Sequence[float], costs: Sequence[float], num: int) -> list[int]:  # [S]
    """Whole numbers K_j >= 1 of nearly the least sum_j needs_j / K_j with sum_j K_j c_j <= num sum_j c_j.

    One at a time goes to whom it helps most for its cost, until none can be paid for.
    """
    counts = [1] * len(needs)
    left = (num - 1) * math.fsum(costs)
    heap = [(-need / 2 / cost, j) for j, (need, cost) in enumerate(zip(needs, costs, strict=True)) if need > 0]
    heapq.heapify(heap)
    while heap:
        _, j = heap[0]
        if costs[j] > left:
            heapq.heappop(heap)
            continue
        left -= costs[j]
        counts[j] += 1
        heapq.heapreplace(heap, (-needs[j] / (counts[j] * (counts[j] + 1)) / costs[j], j))
    return counts


def squared_scores(rollout: Rollout) -> list[float]:  # [L]
    """|grad log pi(y_t)|^2 with respect to the logits, 1 - 2 pi(y_t) + sum_a pi(a)^2, and 0 where nothing was drawn.

    What is not among the alternatives adds nothing to the sum; without any it is pi(y_t)^2 alone.
    """
    tokens, logprobs, alternatives = rollout.token_ids, rollout.completion.logprobs, rollout.completion.alternatives
    if alternatives is None:
        squares = [(1 - math.exp(logprob)) ** 2 for logprob in logprobs]
    else:
        squares = []
        for token, logprob, pairs in zip(tokens, logprobs, alternatives, strict=True):
            probs = {token: math.exp(logprob)} | {other: math.exp(x) for other, x in pairs}
            squares.append(1 - 2 * probs[token] + math.fsum(p * p for p in probs.values()))
    if rollout.action_mask is None:
        return squares
    return [square if is_action else 0.0 for square, is_action in zip(squares, rollout.action_mask, strict=True)]
