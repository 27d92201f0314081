"""The critic: a value of every token state, learnt from returns. A folder of it loads alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vineppo.batch import by_response, collate, microbatches, num_tokens
from vineppo.learner.config import CriticConfig
from vineppo.learner.losses import clipped_value_loss
from vineppo.learner.optimizer_step import Stepper
from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.models.loading import load_critic_model
from vineppo.models.logprobs import token_values
from vineppo.types import Sample, UserError, make_sample


class Critic:
    def __init__(self, config: CriticConfig, model: Any, *, total_steps: int):
        self.config = config
        self.model = model
        self.stepper = Stepper(config, model, total_steps=total_steps, name="credit.critic")

    @torch.no_grad()
    def values(self, responses: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, ...]]:
        """V of the state before every response token and after the last, [L+1] for each (prompt_ids, response_ids)."""
        # One more token, which no value sees, makes room for the state after the last.
        samples = [make_sample(prompt_ids, (*response_ids, 0)) for prompt_ids, response_ids in responses]
        rows: list[tuple[float, ...]] = [()] * len(samples)
        for indices in microbatches(list(map(num_tokens, samples)), self.config.microbatch_tokens):
            chosen = [samples[i] for i in indices]
            for i, row in zip(indices, by_response(chosen, self._forward(chosen)), strict=True):
                rows[i] = row
        return rows

    def step(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        """One optimizer step on the clipped value loss, mean over tokens; every sample has token_values and returns."""
        total_tokens = sum(len(sample.response_ids) for sample in minibatch)
        num_clipped = 0.0

        def loss_of(microbatch: list[Sample]) -> torch.Tensor:
            nonlocal num_clipped
            values_N = self._forward(microbatch)
            old_N = values_N.new_tensor([value for sample in microbatch for value in sample.token_values or ()])
            returns_N = values_N.new_tensor([target for sample in microbatch for target in sample.returns or ()])
            losses_N, clipped_N = clipped_value_loss(values_N, old_N, returns_N, clip_eps=self.config.value_clip_eps)
            num_clipped += clipped_N.sum().item()
            return losses_N.sum() / total_tokens

        step = self.stepper.step(minibatch, list(map(num_tokens, minibatch)), loss_of)
        return {"critic/loss": step.loss, "critic/clip_frac": num_clipped / total_tokens} | step.metrics("critic")

    def memory(self) -> dict[str, float]:
        return self.stepper.memory("critic")

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """A folder that `load_critic_model` opens, and the optimizer with whatever else is in `state`."""
        self.model.save_pretrained(folder)
        save_tensors(state | self.stepper.state_dict(), folder / "trainer.pt")

    def load(self, folder: Path) -> dict[str, Any]:
        """Raises UserError where the folder holds another model's critic."""
        try:
            self.model.load_state_dict(load_critic_model(folder).state_dict())
        except RuntimeError:  # its message is a list of all parameters
            raise UserError(f"{folder}: this critic is of another architecture than the policy") from None
        state = load_tensors(folder / "trainer.pt")
        try:
            self.stepper.load_state_dict(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / 'trainer.pt'}: not the state of this critic's optimizer: {error}") from None
        return state

    def _forward(self, samples: Sequence[Sample]) -> torch.Tensor:
        with self.stepper.autocast():
            return token_values(self.model, collate(samples, device=self.stepper.device))
