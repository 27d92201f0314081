"""From samples to tensors. Collate pads, shifts and flattens, once: position t is the state before target t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch

from vineppo.sample import Sample

T = TypeVar("T")

COLUMNS = tuple(
    field.name
    for field in fields(Sample)
    if field.name not in ("prompt_ids", "response_ids", "action_mask", "is_extra")
)


@dataclass(frozen=True)
class Batch:
    """N counts the actions: the targets under the action mask, flattened, are those of all responses in order."""

    input_ids_BT: torch.Tensor  # int64
    target_ids_BT: torch.Tensor  # int64
    attention_mask_BT: torch.Tensor  # int64, 0 on padding
    action_mask_BT: torch.Tensor  # bool, targets that the policy wrote
    samples: Sequence[Sample] = ()  # [B]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the samples' columns by name, [N] each

    @property
    def num_actions(self) -> list[int]:  # [B]
        return [sample.num_actions for sample in self.samples]

    def sum_responses(self, numbers_N: torch.Tensor) -> torch.Tensor:
        """The sum over each response's actions, [B]."""
        return torch.stack([part.sum() for part in numbers_N.split(self.num_actions)])


def collate(
    samples: Sequence[Sample],
    *,
    columns: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Batch:
    """Pads on the right to the longest sample, with token 0, which every model has and no mask lets through.

    `columns` names those of the samples that the batch has as tensors of `dtype`, one number for each action.
    """
    rows = [sample.prompt_ids + sample.response_ids for sample in samples]
    length = max(map(len, rows)) - 1
    actions = [
        (False,) * (len(sample.prompt_ids) - 1) + (sample.action_mask or (True,) * len(sample.response_ids))
        for sample in samples
    ]
    ids = torch.tensor([pad(row, length + 1, 0) for row in rows])
    real_BT = torch.arange(length) < torch.tensor([[len(row) - 1] for row in rows])
    flat = [[x for sample in samples for x in sample.at_actions(getattr(sample, name))] for name in columns]
    return Batch(
        input_ids_BT=ids[:, :-1].to(device),
        target_ids_BT=ids[:, 1:].to(device),
        attention_mask_BT=real_BT.long().to(device),
        action_mask_BT=torch.tensor([pad(row, length, False) for row in actions]).to(device),
        samples=samples,
        columns=dict(zip(columns, torch.tensor(flat, dtype=dtype).to(device), strict=True)),
    )


def pad(row: tuple[T, ...], length: int, value: T) -> tuple[T, ...]:
    return row + (value,) * (length - len(row))


def present_columns(samples: Sequence[Sample]) -> list[str]:
    """Names of the columns that the samples have; either all have one or none."""
    return [name for name in COLUMNS if getattr(samples[0], name) is not None]


def by_response(samples: Sequence[Sample], column_N: torch.Tensor) -> list[tuple[float, ...]]:
    """What the actions of a collated batch have, flattened, back as one [L] for each response; 0 where none is."""
    parts = column_N.split([sample.num_actions for sample in samples])
    return [spread_out(sample, part.tolist()) for sample, part in zip(samples, parts, strict=True)]


def spread_out(sample: Sample, numbers: list[float]) -> tuple[float, ...]:  # [L]
    if sample.action_mask is None:
        return tuple(numbers)
    following = iter(numbers)
    return tuple(next(following) if is_action else 0.0 for is_action in sample.action_mask)


def num_tokens(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.response_ids)


def microbatches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of rows, longest first, in groups whose padded size stays within `max_tokens`.

    A row that alone is longer is a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
