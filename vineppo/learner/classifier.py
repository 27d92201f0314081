"""A reward model that learns: soft labels at states of responses, cross-entropy, one optimizer step a minibatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from vineppo.batch import collate, num_tokens
from vineppo.learner.config import OptimizerStepConfig
from vineppo.learner.objective import Loss, Sum
from vineppo.learner.optimizer_step import STATE_FILE, OptimizerStep
from vineppo.models.reward_model import state_logits, state_sample
from vineppo.sample import Sample


@dataclass(frozen=True)
class LabelledResponse:
    """What states of a response are worth: `labels` in [0, 1], each as much as `weights` says."""

    problem: str  # its id
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    states: tuple[int, ...]  # [n] token indices, rising, within [0, L]
    labels: tuple[float, ...]  # [n]
    weights: tuple[float, ...]  # [n]

    @property
    def sample(self) -> Sample:
        return state_sample(self.prompt_ids, self.response_ids, self.states)


class ClassifierLearner:
    """Of a token classifier with one logit."""

    def __init__(self, config: OptimizerStepConfig, model: Any, *, total_steps: int):
        self.model = model
        self.optimizer_step = OptimizerStep(config, model, total_steps=total_steps, name="learner")

    def step(self, minibatch: Sequence[LabelledResponse]) -> dict[str, float]:
        """One optimizer step on the mean cross-entropy over the minibatch's labels, by their weights."""
        total = sum(sum(row.weights) for row in minibatch)
        lengths = [num_tokens(row.sample) for row in minibatch]
        return self.optimizer_step.take(minibatch, lengths, lambda rows: self._loss(rows, total)).metrics("optim")

    def _loss(self, rows: Sequence[LabelledResponse], total: float) -> Loss:
        batch = collate([row.sample for row in rows], device=self.optimizer_step.device)
        with self.optimizer_step.autocast():
            logits_N = state_logits(self.model, batch)[:, 0]
        labels_N, weights_N = (
            logits_N.new_tensor([number for row in rows for number in getattr(row, column)])
            for column in ("labels", "weights")
        )
        losses_N = F.binary_cross_entropy_with_logits(logits_N, labels_N, reduction="none")
        loss = (weights_N * losses_N).sum() / total
        return Loss(loss, {"prm/loss": Sum(loss)})

    def memory(self) -> dict[str, float]:
        return self.optimizer_step.memory("reward_model")

    def save(self, folder: Path) -> None:
        """Everything but the weights that the next step depends on."""
        self.optimizer_step.save(folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Raises UserError where the folder holds another model's optimizer, and changes nothing then."""
        self.optimizer_step.load(folder / STATE_FILE)
