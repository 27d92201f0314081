"""What the learner sees of a response: its tokens, and a column for each thing that is known of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A rollout with its credit, as the learner sees it: every column is aligned to the response.

    A prompt P0 P1, an answer A0 A1, what a tool replied E0, and the rest of the answer A2:

        prompt_ids   P0 P1
        response_ids A0   A1   E0    A2
        action_mask  True True False True     a loss sees A0, A1 and A2 alone
        advantages   0.5  0.5  0.0   -0.2     whatever a column has at E0 is never read
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # [L]
    advantages: tuple[float, ...]  # [L]
    sampling_logprobs: tuple[float, ...]  # [L] from the engine: the mismatch metric, importance weights
    token_values: tuple[float, ...] | None = None  # [L] of a critic, at the start of the iteration
    returns: tuple[float, ...] | None = None  # [L]
    old_logprobs: tuple[float, ...] | None = None  # [L]
    ref_logprobs: tuple[float, ...] | None = None  # [L]
    nucleus_logmass: tuple[float, ...] | None = None  # [L] log of the probability that top_p and top_k keep
    weights: tuple[float, ...] | None = None  # [L] what each token counts in the loss; None: 1 each
    action_mask: tuple[bool, ...] | None = None  # [L] False on tokens that the environment wrote; None: all are actions
    is_extra: bool = False  # beside the rollouts, whose number it leaves as it is

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            if name in ("prompt_ids", "response_ids", "is_extra") or column is None:
                continue
            if len(column) != len(self.response_ids):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.response_ids)} response tokens")
        if self.action_mask is not None and not any(self.action_mask):
            raise ValueError("action_mask leaves no token to learn from")

    @property
    def num_actions(self) -> int:
        return len(self.response_ids) if self.action_mask is None else sum(self.action_mask)

    @property
    def total_weight(self) -> float:
        """Of its actions; their number where each counts 1."""
        return self.num_actions if self.weights is None else math.fsum(self.at_actions(self.weights))

    def at_actions(self, column: Sequence[T]) -> Sequence[T]:
        """What a column [L] has at the tokens that the policy wrote."""
        return column if self.action_mask is None else list(compress(column, self.action_mask))


Minibatch = Sequence[Sample] | Sequence[tuple[Sample, ...]]
"""What one optimizer step learns from: samples, or samples that are compared with each other, such as pairs."""


def make_sample(
    prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], action_mask: tuple[bool, ...] | None = None
) -> Sample:
    """A response without credit, as maximum likelihood and scoring take it."""
    nothing = (0.0,) * len(response_ids)
    return Sample(prompt_ids, response_ids, advantages=nothing, sampling_logprobs=nothing, action_mask=action_mask)
