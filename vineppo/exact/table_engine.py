"""An engine that samples from a world's table with numpy, and counts what an engine with a prefix cache would forward.

Shapes: N requests, T tokens, S rows of the table, A actions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vineppo.protocols import OnComplete
from vineppo.types import Alternatives, Completion, Request, SamplingParams

if TYPE_CHECKING:
    from vineppo.exact.world import World


class TableEngine:
    """Samples from a policy that is a table; temperature 1, nothing cut off.

    `computed` counts forwards of one token as the in-process engine of engine/llama does: one for every distinct state
    that something is drawn from, and one for every token of a prefix that stands before such a state and was neither
    kept from an earlier call nor computed for another request of this one. So a vine of a kept rollout computes its
    own tokens only, and vines that have not parted yet are computed once.
    """

    def __init__(self, world: World):
        self.world, self._end = world, len(world.actions) - 1
        self.usage: Counter[str] = Counter()
        self.computed: Counter[str] = Counter()
        self.load_weights({"probs": world.probs_SA}, version=0)

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        """`probs` [S, A], the policy itself."""
        self._probs_SA = weights["probs"]
        with np.errstate(divide="ignore"):
            self._logprobs = np.log(self._probs_SA).tolist()
        self._ranked = [ranked(logprobs) for logprobs in self._logprobs]
        self._cumulative_SA = self._probs_SA.cumsum(axis=1)[:, :-1]
        self._cumulative_SA[self._cumulative_SA > 1 - 1e-12] = 1.0  # a sum of probabilities may round below 1
        self._version = version
        self.kept = np.zeros(0, dtype=np.uint64)

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        if replace(params, num_alternatives=0) != SamplingParams():
            raise ValueError(f"the table is sampled as it is, not with {params}")

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        self.check(requests, params)
        if not requests:
            return []
        prefixes = list(dict.fromkeys(request.prefix_ids for request in requests))
        number = {prefix: i for i, prefix in enumerate(prefixes)}
        prefix_N = np.array([number[request.prefix_ids] for request in requests])
        nodes_N = np.array([self.world.node(self.world.text(prefix)) for prefix in prefixes])[prefix_N]
        budgets_N = np.array([request.max_new_tokens for request in requests])
        seeds_N = np.array([request.seed for request in requests], dtype=np.uint64)
        rows_NT, actions_NT = self._draw(nodes_N, seeds_N, budgets_N.max())
        # draws go on after the end and are cut here, so that one response's end moves no other's draws
        ends_NT = (actions_NT == self._end) & (np.arange(actions_NT.shape[1]) < budgets_N[:, None])
        lengths_N = np.where(ends_NT.any(axis=1), ends_NT.argmax(axis=1) + 1, budgets_N)
        self.usage[purpose] += int(lengths_N.sum())
        self._count(prefixes, prefix_N, actions_NT, lengths_N, purpose, keep)
        columns = zip(rows_NT.tolist(), actions_NT.tolist(), lengths_N.tolist(), strict=True)
        completions = [self._completion(rows[:length], tokens[:length], params) for rows, tokens, length in columns]
        for i, completion in enumerate(completions):
            if on_complete:
                on_complete(i, completion)
        return completions

    def completion(self, text: str, params: SamplingParams) -> Completion:
        """What `generate` returns where it draws this response; `text` is prompt and response."""
        trace = self.world.trace(text)
        return self._completion(trace.rows_L.tolist(), trace.actions_L.tolist(), params)

    def _completion(self, rows: list[int], tokens: list[int], params: SamplingParams) -> Completion:
        return Completion(
            tuple(tokens),
            tuple([self._logprobs[row][token] for row, token in zip(rows, tokens, strict=True)]),
            "eos" if tokens[-1] == self._end else "length",
            self._version,
            tuple([self._ranked[row][: params.num_alternatives] for row in rows]) if params.num_alternatives else None,
        )

    def _draw(self, nodes_N: np.ndarray, seeds_N: np.ndarray, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the table and actions, [N, T] each."""
        rows, actions = [], []
        for t in range(num_tokens):
            rows_N = self.world.rows_N[nodes_N]
            actions_N = (self._cumulative_SA[rows_N] <= uniforms(seeds_N, t)[:, None]).sum(axis=1)
            nodes_N = self.world.next_NA[nodes_N, actions_N]
            rows.append(rows_N)
            actions.append(actions_N)
        return np.stack(rows, axis=1), np.stack(actions, axis=1)

    def _count(
        self,
        prefixes: Sequence[tuple[int, ...]],
        prefix_N: np.ndarray,
        actions_NT: np.ndarray,
        lengths_N: np.ndarray,
        purpose: str,
        keep: bool,
    ) -> None:
        """Adds what this call forwards to `computed`. A state is known by a hash of its tokens."""
        longest = max(map(len, prefixes))
        tokens_PT = np.array([prefix + (-1,) * (longest - len(prefix)) for prefix in prefixes])
        states_PT = hashes(np.zeros(len(prefixes), dtype=np.uint64), tokens_PT)
        sizes_P = np.array([len(prefix) for prefix in prefixes])
        before = states_PT[np.arange(longest) < sizes_P[:, None] - 1]
        starts_N = states_PT[np.arange(len(prefixes)), sizes_P - 1][prefix_N]
        states_NT = np.concatenate([starts_N[:, None], hashes(starts_N, actions_NT[:, :-1])], axis=1)
        drawn_from = np.unique(states_NT[np.arange(states_NT.shape[1]) < lengths_N[:, None]])
        filled = np.setdiff1d(np.setdiff1d(before, self.kept), drawn_from)
        self.computed[purpose] += len(drawn_from) + len(filled)
        if keep:
            self.kept = np.union1d(self.kept, np.concatenate([drawn_from, filled]))


def ranked(logprobs: Sequence[float]) -> Alternatives:
    """Likeliest first, without what never comes."""
    order = sorted(range(len(logprobs)), key=lambda a: -logprobs[a])
    return tuple((a, logprobs[a]) for a in order if logprobs[a] > -math.inf)


def uniforms(seeds_N: np.ndarray, t: int) -> np.ndarray:  # [N] in [0, 1)
    """Number t of every seed's stream: splitmix64 (Steele et al. 2014), whose streams can be entered anywhere."""
    with np.errstate(over="ignore"):
        return (mixed(seeds_N + np.uint64((t + 1) * 0x9E3779B97F4A7C15 % 2**64)) >> np.uint64(11)) * 2.0**-53


def hashes(states_N: np.ndarray, tokens_NT: np.ndarray) -> np.ndarray:  # [N, T]
    """Of the states after each of the tokens."""
    found = np.zeros((len(states_N), tokens_NT.shape[1]), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for t in range(tokens_NT.shape[1]):
            found[:, t] = states_N = mixed(states_N * np.uint64(31) + tokens_NT[:, t].astype(np.uint64) + np.uint64(1))
    return found


def mixed(x_N: np.ndarray) -> np.ndarray:
    """The output function of splitmix64."""
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))
