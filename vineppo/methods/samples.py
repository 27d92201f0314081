"""From rollouts and their credit to what the learner sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vineppo.sample import Sample
from vineppo.types import Credit, ExtraRollout, Group, Rollout


def to_samples(
    groups: Sequence[Group], credits: Sequence[Sequence[Credit]], extra: Sequence[ExtraRollout] = ()
) -> list[Sample]:  # [P*G + extra]
    """What the learner sees: the groups, then the extra rollouts. All have weights, or none has."""
    samples = [
        to_sample(rollout, credit)
        for group, group_credits in zip(groups, credits, strict=True)
        for rollout, credit in zip(group, group_credits, strict=True)
    ]
    samples += [weigh(replace(to_sample(one.rollout, one.credit), is_extra=True), one.weight) for one in extra]
    return samples if all(sample.weights is None for sample in samples) else [weigh(sample) for sample in samples]


def weigh(sample: Sample, weight: float = 1.0) -> Sample:
    weights = sample.weights or (1.0,) * len(sample.response_ids)
    return replace(sample, weights=tuple(weight * w for w in weights))


def with_descendants(samples: Sequence[Sample], extra: Sequence[ExtraRollout]) -> list[list[Sample]]:  # [P*G]
    """Every rollout's sample with those of the extra rollouts that descend from it.

    Minibatches are made of these: an iteration has as many steps as it has without extra rollouts, and in every
    minibatch the weights of what is one rollout's add up.
    """
    families = [[sample] for sample in samples[: len(samples) - len(extra)]]
    for one, sample in zip(extra, samples[len(families) :], strict=True):
        families[one.root].append(sample)
    return families


def extra_cost(samples: Sequence[Sample]) -> dict[str, float]:
    """What an epoch of optimizer steps costs where it is more than the rollouts alone."""
    num_extra = sum(sample.is_extra for sample in samples)
    if not num_extra:
        return {}
    return {
        "rollouts/num_extra": num_extra,
        "policy/num_actions": sum(sample.num_actions for sample in samples),
        "policy/num_forwarded": sum(len(sample.prompt_ids) + len(sample.response_ids) for sample in samples),
    }


def to_sample(rollout: Rollout, credit: Credit) -> Sample:
    """Without what comes after the last action, which no loss sees."""
    mask = rollout.action_mask
    end = len(rollout.token_ids) if mask is None else len(mask) - mask[::-1].index(True)
    columns = {
        "response_ids": rollout.token_ids,
        "advantages": credit.advantages,
        "sampling_logprobs": rollout.completion.logprobs,
        "token_values": credit.token_values,
        "returns": credit.returns,
        "weights": credit.weights,
        "action_mask": mask,
    }
    return Sample(rollout.prompt_ids, **{name: column and column[:end] for name, column in columns.items()})
