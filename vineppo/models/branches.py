"""A reward model at tokens that might have come: all of a response's alternatives in one forward.

An alternative to token t is appended to the response, at t's position, and sees what came before t and itself alone.
So a response of T tokens with E alternatives costs T + E tokens, where one text each would cost E x T.
Shapes: B rows, T tokens with alternatives, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vineppo.batch import microbatches, pad
from vineppo.models.make import value_head
from vineppo.models.reward_model import RewardModel, probabilities
from vineppo.types import UserError


@dataclass(frozen=True)
class Branched:
    """A response, and (t, token) for each token that might have stood at t instead."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # [L]
    branches: tuple[tuple[int, int], ...]  # [E]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.response_ids + tuple(token for _, token in self.branches)

    @property
    def positions(self) -> tuple[int, ...]:
        return (*range(self.num_tokens), *(len(self.prompt_ids) + t for t, _ in self.branches))

    def mask(self, size: int) -> torch.Tensor:  # [T, T] bool: row sees column
        seen_TT = torch.eye(size, dtype=torch.bool)
        seen_TT[: self.num_tokens, : self.num_tokens] = torch.ones(self.num_tokens, self.num_tokens).tril().bool()
        for i, (t, _) in enumerate(self.branches, self.num_tokens):
            seen_TT[i, : len(self.prompt_ids) + t] = True
        return seen_TT


@torch.no_grad()
def read_branches(
    reward_model: RewardModel, rows: Sequence[Branched]
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """([L+1], [E]) for each: of the states before every token and after the last, and after each alternative."""
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = [((), ())] * len(rows)
    for indices in microbatches([len(row.ids) for row in rows], reward_model.microbatch_tokens):
        for i, logits_TC in zip(indices, branch_logits(reward_model.model, [rows[i] for i in indices]), strict=True):
            numbers, row = tuple(probabilities(logits_TC).tolist()), rows[i]
            found[i] = numbers[len(row.prompt_ids) - 1 : row.num_tokens], numbers[row.num_tokens : len(row.ids)]
    return found


def branch_logits(model: Any, rows: Sequence[Branched]) -> torch.Tensor:  # [B, T, C]
    size, device = max(len(row.ids) for row in rows), model.device
    ids_BT, positions_BT = (
        torch.tensor([pad(getattr(row, of), size, 0) for row in rows], device=device) for of in ("ids", "positions")
    )
    seen_BTT = torch.stack([row.mask(size) for row in rows]).to(device)
    bias_B1TT = torch.zeros(seen_BTT.shape, dtype=model.dtype, device=device)
    bias_B1TT = bias_B1TT.masked_fill(~seen_BTT, torch.finfo(model.dtype).min)[:, None]
    output = model.base_model(input_ids=ids_BT, attention_mask=bias_B1TT, position_ids=positions_BT, use_cache=False)
    return value_head(model)(output.last_hidden_state).float()


def check_branches(reward_model: RewardModel) -> None:
    """Raises UserError for an architecture that does not attend as it is told."""
    size = reward_model.model.get_input_embeddings().num_embeddings
    ids = tuple(i % size for i in range(6))
    row = Branched(ids[:2], ids[2:], ((0, ids[3]), (2, ids[1]), (2, ids[0])))
    apart = [(ids[:2], (*row.response_ids[:t], token)) for t, token in row.branches]
    expected = [values[-1] for values in reward_model.values(apart)]
    try:
        (_, found), *_ = read_branches(reward_model, [row])
        same = torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    except (RuntimeError, TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"reward model {reward_model.name}: {reward_model.model.config.model_type} cannot be asked about several "
            'next tokens at once; choose another architecture, or use it as a potential (credit.name = "potential")'
        )
