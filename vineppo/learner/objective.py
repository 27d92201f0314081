"""What an optimizer step minimises: a function of what the policy says of a microbatch, and the value it returns.

A method adds a loss by writing one such function, in a file of its own; `learner.step(minibatch, loss)` takes it:

    def reward_weighted_nll(batch, readings, config, counts):
        losses_N = -batch.columns["advantages"] * readings.logprobs_N
        loss = losses_N.sum() / counts.num_tokens
        return Loss(loss, {"rwr/loss": Sum(loss)})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vineppo.learner.config import LearnerConfig
from vineppo.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from vineppo.batch import Batch
    from vineppo.models.logprobs import Readings


class Sum(NamedTuple):
    """A metric that is added up over the microbatches, then divided by `per`, a count of the whole minibatch."""

    value: Tensor  # []
    per: float = 1


class Max(NamedTuple):
    """A metric of which the largest over the microbatches counts."""

    value: Tensor  # []


@dataclass(frozen=True)
class Loss:
    """Of one microbatch. The step's gradient is that of the sum of `value` over the microbatches."""

    value: Tensor  # []
    metrics: Mapping[str, Sum | Max] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    """The largest values of some metrics at which the step is taken: above, the minibatch is skipped."""


@dataclass(frozen=True)
class Counts:
    """Of a whole minibatch, over all workers. A loss divides by these, so how the work is cut changes no gradient."""

    num_rows: int  # samples but for extra ones, or pairs where a minibatch is of pairs
    num_tokens: int  # actions
    total_weight: float  # of the actions; their number where all count alike

    @classmethod
    def of(cls, rows: Sequence[tuple[Sample, ...]]) -> Counts:
        samples = [sample for row in rows for sample in row]
        return cls(
            num_rows=sum(not row[0].is_extra for row in rows),
            num_tokens=sum(sample.num_actions for sample in samples),
            total_weight=sum(sample.total_weight for sample in samples),
        )


class LossFunction(Protocol):
    """A minibatch of pairs comes as a batch of the first of all pairs, then the second of all.

    A module-level function, or a `partial` of one, can be sent to a learner in another process.
    """

    def __call__(self, batch: Batch, readings: Readings, config: LearnerConfig, counts: Counts, /) -> Loss: ...


def token_weights(batch: Batch, readings: Readings, config: LearnerConfig, counts: Counts) -> Tensor:  # [N]
    """How much each action counts in the minibatch's loss: `config.loss_aggregation`, times its own weight."""
    lengths = batch.num_actions
    if config.loss_aggregation == "token":
        weights = [1 / counts.total_weight] * len(lengths)
    elif config.loss_aggregation == "sequence":
        weights = [1 / (counts.num_rows * length) for length in lengths]
    else:
        assert config.loss_length is not None
        weights = [1 / (counts.num_rows * config.loss_length)] * len(lengths)
    weights_N = per_action(batch, weights, readings.logprobs_N)
    return weights_N * batch.columns["weights"] if "weights" in batch.columns else weights_N


def per_action(batch: Batch, per_sample: Sequence[float], like: Tensor) -> Tensor:  # [N]
    """[B] -> [N]: every action gets its sample's number."""
    pairs = zip(per_sample, batch.num_actions, strict=True)
    return like.new_tensor([number for number, length in pairs for _ in range(length)])
