"""Critics and estimators for tests of credit by a critic: what they say is arbitrary, or the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vineppo.alternatives import alternatives_table
from vineppo.credit.common import CreditContext
from vineppo.credit.control_variate import PARTS
from vineppo.credit.least_squares import Products
from vineppo.credit.vine_critic import VineCritic, VineCriticConfig
from vineppo.environment import Environment
from vineppo.seeding import derive_seed
from vineppo.types import Rollout


class ArbitraryCritic:
    """A number from a hash for every state and token, but for what `learn` adds to it."""

    def __init__(self) -> None:
        self.learnt: list[Rollout] = []

    def action_values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        return [self.along(rollout) for rollout in rollouts]

    def along(self, rollout: Rollout) -> np.ndarray:
        ids_LM, _ = alternatives_table(rollout.completion)
        states = [rollout.prompt_ids + rollout.token_ids[:t] for t in range(len(ids_LM))]
        return np.array(
            [[self.value(state, token) for token in row] for state, row in zip(states, ids_LM.tolist(), strict=True)]
        )

    def value(self, state: tuple[int, ...], token: int) -> float:
        return derive_seed("critic", state, token) / 2**64

    def learn(self, rollouts: Sequence[Rollout], *, seed: int) -> dict[str, float]:
        self.learnt += rollouts
        return {}

    def memory(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def load(self, folder: Path) -> None:
        pass


class LeakingCritic(ArbitraryCritic):
    """Has learnt from the rewards that it is asked about."""

    def action_values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        self.learnt = list(rollouts)
        return super().action_values(rollouts)

    def value(self, state: tuple[int, ...], token: int) -> float:
        after = (*state, token)
        passed = [r.reward for r in self.learnt if (r.prompt_ids + r.token_ids)[: len(after)] == after]
        return sum(passed) / (len(passed) + 1)


def make_vine_critic(environment: Environment, critic: ArbitraryCritic | None = None, **config: object) -> VineCritic:
    """One that has learnt before, from responses of which its squares are left: constants between 0 and 1."""
    context = CreditContext(environment)
    estimator = VineCritic(VineCriticConfig(**config), context, critic=critic or ArbitraryCritic())  # pyright: ignore
    half = np.linspace(0.3, 0.7, len(PARTS))
    products = np.eye(1 + len(PARTS)) + np.pad(np.diag(np.zeros(len(PARTS))), (1, 0))
    products[0, 1:] = products[1:, 0] = half
    estimator.squares, estimator.num_iterations = Products(products, 1e9), 1
    return estimator
