"""From samples to tensors. Collate pads and shifts, once: column t is the state before target t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vineppo.types import Sample


@dataclass(frozen=True)
class Batch:
    input_ids_BT: torch.Tensor  # int64
    target_ids_BT: torch.Tensor  # int64
    attention_mask_BT: torch.Tensor  # int64, 0 on padding
    action_mask_BT: torch.Tensor  # bool, targets that belong to a response


def collate(samples: Sequence[Sample], *, device: torch.device | str = "cpu") -> Batch:
    """Pads on the right to the longest sample, with token 0, which every model has and no mask lets through.

    The action targets, flattened, are the responses in order.
    """
    rows = [sample.prompt_ids + sample.response_ids for sample in samples]
    num_columns = max(map(len, rows)) - 1
    ids = torch.tensor([row + (0,) * (num_columns + 1 - len(row)) for row in rows])
    ends_B1 = torch.tensor([[len(row) - 1] for row in rows])
    starts_B1 = torch.tensor([[len(sample.prompt_ids) - 1] for sample in samples])
    columns_T = torch.arange(num_columns)
    real_BT = columns_T < ends_B1
    return Batch(
        input_ids_BT=ids[:, :-1].to(device),
        target_ids_BT=ids[:, 1:].to(device),
        attention_mask_BT=real_BT.long().to(device),
        action_mask_BT=(real_BT & (columns_T >= starts_B1)).to(device),
    )


def num_tokens(sample: Sample) -> int:
    return len(sample.prompt_ids) + len(sample.response_ids)


def by_response(samples: Sequence[Sample], column_N: torch.Tensor) -> list[tuple[float, ...]]:
    """What the action targets of a collated batch have, flattened, back as one [L] for each response."""
    return [tuple(part.tolist()) for part in column_N.split([len(sample.response_ids) for sample in samples])]


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
