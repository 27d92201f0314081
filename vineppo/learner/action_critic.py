"""A critic of tokens: a small head on a language model's hidden states guesses the reward after each likely token.

It reads what the model knows: the hidden state before the token, the token's output embedding and its probability, and
learns by binary cross-entropy from the rewards of responses, at the tokens that were sampled. Rewards outside of [0, 1]
widen the range that the head's sigmoid spans: it reaches over all rewards seen so far.
Shapes: N states before tokens, K pairs of a state and a token, U distinct tokens, H the model's width, W the head's;
L tokens of a response, M likeliest of each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vineppo.alternatives import alternatives_table, sampled_logprobs
from vineppo.batch import Batch, collate, microbatches, num_tokens
from vineppo.learner.config import ActionCriticConfig
from vineppo.learner.objective import Loss, Sum
from vineppo.learner.optimizer_step import OptimizerStep
from vineppo.machine.saved_state import restoring
from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.models.logprobs import read_hidden, reading_dtype
from vineppo.sample import Sample, make_sample
from vineppo.types import Rollout

STATE_FILE = "critic.pt"
Lesson = tuple[Sample, torch.Tensor | None]
"""A response, and the hidden states before its actions, [N, H], where they are not learnt."""
ByIdentity = dict[int, tuple[Rollout, torch.Tensor]]
"""Rollouts with their hidden states, by the id() that no other has while they are held."""
LEAST_LOGPROB = -20.0
"""What is less likely reads the same."""


class ActionHead(nn.Module):
    """Three layers. The first is a sum over what it reads, so that a state is read once for all its tokens."""

    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.state = nn.Linear(hidden_size, width)
        self.token = nn.Linear(hidden_size, width, bias=False)
        self.certainty = nn.Linear(2, width, bias=False)
        self.inner = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)  # before it has learnt anything, all tokens are worth the same
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        hidden_NH: torch.Tensor,
        states_K: torch.Tensor,  # which of them each pair has
        embeddings_UH: torch.Tensor,
        tokens_K: torch.Tensor,  # which of them each pair has
        logprobs_K: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [K] of pairs of a state and a token."""
        logprobs_K = logprobs_K.clamp(min=LEAST_LOGPROB)
        state_KW = self.state(normalize(hidden_NH))[states_K]
        token_KW = self.token(normalize(embeddings_UH))[tokens_K]
        certainty_KW = self.certainty(torch.stack((logprobs_K, logprobs_K.exp()), dim=-1))
        return self.out(F.gelu(self.inner(F.gelu(state_KW + token_KW + certainty_KW)))).squeeze(-1)


def normalize(vectors: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(vectors, vectors.shape[-1:])


class ActionModel(nn.Module):
    """The head, a backbone of its own where it has one, and the range of rewards."""

    lowest: torch.Tensor
    highest: torch.Tensor

    def __init__(self, head: ActionHead, backbone: Any | None):
        super().__init__()
        self.head = head
        self.backbone = backbone
        self.register_buffer("lowest", torch.zeros((), dtype=torch.float64))
        self.register_buffer("highest", torch.ones((), dtype=torch.float64))

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        assert self.backbone is not None  # the config sees to it
        self.backbone.gradient_checkpointing_enable(options)

    def reward(self, share: torch.Tensor) -> torch.Tensor:
        return self.lowest + (self.highest - self.lowest) * share

    def widen(self, rewards: Sequence[float]) -> None:
        self.lowest.fill_(min(float(self.lowest), *rewards))
        self.highest.fill_(max(float(self.highest), *rewards))


class HeadCritic:
    """`policy` is the language model that is read: the one that trains, or with backbone = "own" a copy to be trained
    here."""

    def __init__(self, config: ActionCriticConfig, policy: Any, *, seed: int):
        self.config = config
        self.policy = policy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            head = ActionHead(policy.get_output_embeddings().weight.shape[1], config.width)
        head = head.to(device=policy.device, dtype=policy.dtype)
        self.model = ActionModel(head, policy if config.backbone == "own" else None).to(policy.device).eval()
        self.optimizer_step = OptimizerStep(config, self.model, total_steps=1, name="credit.critic")
        self._judged: ByIdentity = {}  # until it has learnt from them

    @torch.no_grad()
    def action_values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:  # [L, M] each
        hidden = self._read(rollouts)
        if self.model.backbone is None:
            self._judged = by_identity(rollouts, hidden)
        tables = [alternatives_table(rollout.completion) for rollout in rollouts]
        found = [np.empty(0)] * len(rollouts)
        for indices in microbatches([ids_LM.size for ids_LM, _ in tables], self.config.microbatch_tokens):
            values = self._judge([hidden[i] for i in indices], [tables[i] for i in indices])
            for i, values_LM in zip(indices, values, strict=True):
                found[i] = values_LM
        return found

    @torch.no_grad()
    def _read(self, rollouts: Sequence[Rollout]) -> list[torch.Tensor]:  # [L, H] each
        samples = [make_sample(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
        found = [torch.empty(0)] * len(rollouts)
        for indices in microbatches(list(map(num_tokens, samples)), self.config.microbatch_tokens):
            chosen = [samples[i] for i in indices]
            parts = self._hidden(self._collate(chosen)).split([sample.num_actions for sample in chosen])
            for i, hidden_LH in zip(indices, parts, strict=True):
                found[i] = hidden_LH
        return found

    def _judge(
        self, hidden: Sequence[torch.Tensor], tables: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[np.ndarray]:  # [L, M] each
        """Values of the pairs that there are, of all responses at once; 0 elsewhere."""
        there = [np.isfinite(logprobs_LM) for _, logprobs_LM in tables]
        counts_N = np.concatenate([there_LM.sum(axis=1) for there_LM in there])
        states_K = np.arange(len(counts_N)).repeat(counts_N)
        ids_K = np.concatenate([ids_LM[there_LM] for (ids_LM, _), there_LM in zip(tables, there, strict=True)])
        logprobs_K = np.concatenate([column[there_LM] for (_, column), there_LM in zip(tables, there, strict=True)])
        logits_K = self._logits(torch.cat(list(hidden)), *map(torch.from_numpy, (states_K, ids_K, logprobs_K)))
        values_K = self.model.reward(logits_K.double().sigmoid()).cpu().numpy()
        found = [np.zeros(there_LM.shape) for there_LM in there]
        ends = np.cumsum([there_LM.sum() for there_LM in there])
        for values_LM, there_LM, part in zip(found, there, np.split(values_K, ends[:-1]), strict=True):
            values_LM[there_LM] = part
        return found

    def learn(self, rollouts: Sequence[Rollout], *, seed: int) -> dict[str, float]:
        """`num_epochs` passes. Metrics are means over the steps; numbers of steps are sums."""
        self.model.widen([rollout.reward for rollout in rollouts])
        lessons = list(zip(map(make_lesson, rollouts), self._features(rollouts), strict=True))
        rng, size, steps = random.Random(seed), self.config.minibatch_size, []
        for _ in range(self.config.num_epochs):
            rng.shuffle(lessons)
            steps += [self._step(lessons[i : i + size]) for i in range(0, len(lessons), size)]
        totals = {key: sum(step[key] for step in steps) for key in steps[0]}
        return {key: x if key.startswith("critic/num_") else x / len(steps) for key, x in totals.items()}

    def _features(self, rollouts: Sequence[Rollout]) -> Sequence[torch.Tensor | None]:  # [N, H] each
        """What the head reads; of judged rollouts as it was then, so only vines are forwarded. None where it learns."""
        if self.model.backbone is not None:
            return [None] * len(rollouts)
        others = [rollout for rollout in rollouts if id(rollout) not in self._judged]
        known = self._judged | by_identity(others, self._read(others))
        self._judged = {}
        return [at_actions(*known[id(rollout)]) for rollout in rollouts]

    def _step(self, minibatch: Sequence[Lesson]) -> dict[str, float]:
        lengths = [num_tokens(sample) for sample, _ in minibatch]
        num_actions = sum(sample.num_actions for sample, _ in minibatch)
        result = self.optimizer_step.take(minibatch, lengths, lambda lessons: self._loss(lessons, num_actions))
        return result.metrics("critic")

    def _loss(self, lessons: Sequence[Lesson], num_actions: int) -> Loss:
        """`num_actions` is the whole minibatch's."""
        batch = self._collate([sample for sample, _ in lessons], columns=("sampling_logprobs", "returns"))
        read = [features_NH for _, features_NH in lessons if features_NH is not None]
        hidden_NH = torch.cat(read) if read else self._hidden(batch)
        tokens_N, logprobs_N = batch.target_ids_BT[batch.action_mask_BT], batch.columns["sampling_logprobs"]
        states_N = torch.arange(len(tokens_N), device=tokens_N.device)
        logits_N = self._logits(hidden_NH, states_N, tokens_N, logprobs_N)
        span = (self.model.highest - self.model.lowest).to(logits_N.dtype)
        targets_N = (batch.columns["returns"] - self.model.lowest.to(logits_N.dtype)) / span
        loss = F.binary_cross_entropy_with_logits(logits_N, targets_N, reduction="sum") / num_actions
        return Loss(loss, {"critic/loss": Sum(loss)})

    def _logits(
        self, hidden_NH: torch.Tensor, states_K: torch.Tensor, ids_K: torch.Tensor, logprobs_K: torch.Tensor
    ) -> torch.Tensor:
        distinct_U, tokens_K = ids_K.to(hidden_NH.device).unique(return_inverse=True)
        embeddings_UH = self.policy.get_output_embeddings().weight[distinct_U]
        if self.model.backbone is None:
            embeddings_UH = embeddings_UH.detach()
        with self.optimizer_step.autocast():
            logits_K = self.model.head(
                hidden_NH, states_K.to(hidden_NH.device), embeddings_UH, tokens_K, logprobs_K.to(hidden_NH)
            )
        return logits_K if logits_K.dtype == torch.float64 else logits_K.float()

    def _hidden(self, batch: Batch) -> torch.Tensor:  # [N, H]
        trains = torch.is_grad_enabled() and self.model.backbone is not None
        with torch.set_grad_enabled(trains), self.optimizer_step.autocast():
            return read_hidden(self.policy, batch)

    def _collate(self, samples: Sequence[Sample], columns: Sequence[str] = ()) -> Batch:
        return collate(samples, columns=columns, dtype=reading_dtype(self.policy), device=self.optimizer_step.device)

    def memory(self) -> dict[str, float]:
        return self.optimizer_step.memory("critic")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"model": self.model.state_dict()} | self.optimizer_step.state_dict(), folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        state = load_tensors(path := folder / STATE_FILE)
        with restoring(path, "what this critic has learnt"):
            self.model.load_state_dict(state["model"])
            self.optimizer_step.load_state_dict(state)


def by_identity(rollouts: Sequence[Rollout], hidden: Sequence[torch.Tensor]) -> ByIdentity:
    return {id(rollout): (rollout, hidden_LH) for rollout, hidden_LH in zip(rollouts, hidden, strict=True)}


def at_actions(rollout: Rollout, hidden_LH: torch.Tensor) -> torch.Tensor:  # [N, H]
    return hidden_LH if rollout.action_mask is None else hidden_LH[torch.tensor(rollout.action_mask)]


def make_lesson(rollout: Rollout) -> Sample:
    """The response with its reward as every token's return."""
    logprobs = tuple(sampled_logprobs(rollout.completion, *alternatives_table(rollout.completion)).tolist())
    num_tokens = len(rollout.token_ids)
    return Sample(
        rollout.prompt_ids,
        rollout.token_ids,
        advantages=(0.0,) * num_tokens,
        sampling_logprobs=logprobs,
        returns=(rollout.reward,) * num_tokens,
        action_mask=rollout.action_mask,
    )
