"""Critics of tokens for worlds that are known: one that learns a table, and ones that are wrong by a known error.

credit/vine_critic.py takes them as it takes the critic that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vineppo.alternatives import alternatives_table
from vineppo.credit.control_variate import read
from vineppo.credit.ppo import compute_gae, token_rewards
from vineppo.credit.vine_critic import VineCritic
from vineppo.exact.world import World
from vineppo.seeding import derive_seed
from vineppo.types import Assigned, Credit, Group, Rollout

PRIOR = 4.0
"""Responses that a mean over more of them weighs as, in the guess of a mean over fewer."""


class NeverSaved:
    """What the protocol asks of a critic that is never saved."""

    def memory(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError


class TableCritic(NeverSaved):
    """The mean reward of what passed each row and action of the policy's table, drawn to the row's, and that to all's.

    A row may stand for states of different value: then no table of this kind is right.
    """

    def __init__(self, world: World):
        self.world = world
        self.sums_SA = np.zeros_like(world.probs_SA)
        self.counts_SA = np.zeros_like(world.probs_SA)

    def action_values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:  # [L, M] each
        mean = self.sums_SA.sum() / max(1.0, self.counts_SA.sum())
        rows_S = (self.sums_SA.sum(axis=1) + PRIOR * mean) / (self.counts_SA.sum(axis=1) + PRIOR)
        q_SA = (self.sums_SA + PRIOR * rows_S[:, None]) / (self.counts_SA + PRIOR)
        return [q_SA[self.rows(r)[:, None], alternatives_table(r.completion)[0]] for r in rollouts]

    def learn(self, rollouts: Sequence[Rollout], *, seed: int) -> dict[str, float]:
        for rollout in rollouts:
            passed = self.rows(rollout), np.array(rollout.token_ids)
            np.add.at(self.sums_SA, passed, rollout.reward)
            np.add.at(self.counts_SA, passed, 1.0)
        return {}

    def rows(self, rollout: Rollout) -> np.ndarray:  # [L]
        trace = self.world.trace(self.world.text(rollout.prompt_ids + rollout.token_ids))
        return trace.rows_L[-len(rollout.token_ids) :]


class KnownActionCritic(NeverSaved):
    """Q itself, `error` above or below it by a coin for each state and token or, upside down, 1 - Q."""

    def __init__(self, world: World, error: float = 0.0, *, upside_down: bool = False):
        self.world, self.error, self.upside_down = world, error, upside_down

    def action_values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:  # [L, M] each
        return [self.along(rollout) for rollout in rollouts]

    def along(self, rollout: Rollout) -> np.ndarray:
        text = self.world.text(rollout.prompt_ids + rollout.token_ids)
        start, nodes = len(rollout.prompt_ids) - 1, self.world.trace(text).nodes
        ids_LM, _ = alternatives_table(rollout.completion)
        q_LA = np.array([self.world.action_values(n, self.world.budget - t) for t, n in enumerate(nodes)])[start:]
        if self.error:
            q_LA += [[self.error_at(text[: t + 1] + a) for a in self.world.actions] for t in range(start, len(nodes))]
        return np.take_along_axis(1 - q_LA if self.upside_down else q_LA, ids_LM, axis=1)

    def error_at(self, state: str) -> float:
        return self.error if derive_seed("critic", state) % 2 else -self.error

    def learn(self, rollouts: Sequence[Rollout], *, seed: int) -> dict[str, float]:
        return {}


class BootstrappedCredit:
    """The biased comparison: GAE over the values of an estimator's critic, which learns as it does there."""

    def __init__(self, estimator: VineCritic, gae_lambda: float):
        self.estimator, self.gae_lambda = estimator, gae_lambda
        self.update, self.memory, self.save, self.load = (
            estimator.update, estimator.memory, estimator.save, estimator.load,
        )  # fmt: skip

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        assigned = self.estimator.assign(groups, seed=seed)
        return Assigned([list(map(self.credit, group)) for group in groups], assigned.metrics)

    def credit(self, rollout: Rollout) -> Credit:
        (q_LM,) = self.estimator.critic.action_values([rollout])
        values = [*read(rollout, q_LM).values_L.tolist(), 0.0]
        advantages = compute_gae(token_rewards(rollout), values, gamma=1.0, gae_lambda=self.gae_lambda)
        return Credit(rollout.boundaries, tuple(advantages))
