"""The critic: a value of every token state, learnt from returns. A folder of it loads alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vineppo.batch import Batch, by_response, collate, microbatches, num_tokens
from vineppo.learner.config import CriticConfig
from vineppo.learner.losses import clipped_value_loss
from vineppo.learner.objective import Loss, Sum
from vineppo.learner.optimizer_step import STATE_FILE, OptimizerStep
from vineppo.machine.saved_state import restoring
from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.models.loading import load_critic_model
from vineppo.models.logprobs import reading_dtype, token_values
from vineppo.sample import Sample, make_sample
from vineppo.types import UserError


class Critic:
    def __init__(self, config: CriticConfig, model: Any, *, total_steps: int):
        self.config = config
        self.model = model
        self.optimizer_step = OptimizerStep(config, model, total_steps=total_steps, name="credit.critic")

    @torch.no_grad()
    def values(self, responses: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, ...]]:
        """V of the state before every response token and after the last, [L+1] for each (prompt_ids, response_ids)."""
        # One more token, which no value sees, makes room for the state after the last.
        samples = [make_sample(prompt_ids, (*response_ids, 0)) for prompt_ids, response_ids in responses]
        rows: list[tuple[float, ...]] = [()] * len(samples)
        for indices in microbatches(list(map(num_tokens, samples)), self.config.microbatch_tokens):
            chosen = [samples[i] for i in indices]
            for i, row in zip(indices, by_response(chosen, self._forward(self._collate(chosen))), strict=True):
                rows[i] = row
        return rows

    def step(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step on the clipped value loss, mean over actions. Samples need token_values and returns."""
        num_actions = sum(sample.num_actions for sample in minibatch)
        result = self.optimizer_step.take(
            minibatch, list(map(num_tokens, minibatch)), lambda microbatch: self._loss(microbatch, num_actions)
        )
        return result.metrics("critic")

    def _loss(self, microbatch: Sequence[Sample], num_actions: int) -> Loss:
        """`num_actions` is the whole minibatch's."""
        batch = self._collate(microbatch, columns=("token_values", "returns"))
        losses_N, clipped_N = clipped_value_loss(
            self._forward(batch),
            batch.columns["token_values"],
            batch.columns["returns"],
            clip_eps=self.config.value_clip_eps,
        )
        loss = losses_N.sum() / num_actions
        return Loss(loss, {"critic/loss": Sum(loss), "critic/clip_frac": Sum(clipped_N.sum(), per=num_actions)})

    def memory(self) -> dict[str, float]:
        return self.optimizer_step.memory("critic")

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """A folder that `load_critic_model` opens, and the optimizer with whatever else is in `state`."""
        self.model.save_pretrained(folder)
        save_tensors(state | self.optimizer_step.state_dict(), folder / STATE_FILE)

    def load(self, folder: Path) -> dict[str, Any]:
        """Raises UserError where the folder holds another model's critic."""
        try:
            self.model.load_state_dict(load_critic_model(folder).state_dict())
        except RuntimeError:  # its message is a list of all parameters
            raise UserError(f"{folder}: this critic is of another architecture than the policy") from None
        state = load_tensors(folder / STATE_FILE)
        with restoring(folder / STATE_FILE, "the state of this critic's optimizer"):
            self.optimizer_step.load_state_dict(state)
        return state

    def _collate(self, samples: Sequence[Sample], columns: Sequence[str] = ()) -> Batch:
        dtype = reading_dtype(self.model)
        return collate(samples, columns=columns, dtype=dtype, device=self.optimizer_step.device)

    def _forward(self, batch: Batch) -> torch.Tensor:
        with self.optimizer_step.autocast():
            return token_values(self.model, batch)
