"""A reward model as the critic of credit/vine_critic.py: what it says after each token that might have come.

It is read where something is decided: at tokens that were not near certain, for alternatives that are not near
impossible. Everywhere else q(s, a) is what it says of s, so that the token is a step of no luck. Which of the two
holds depends on the state alone, never on the token that was drawn, or the luck would not have mean 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vineppo.alternatives import alternatives_table
from vineppo.models.branches import Branched, check_branches, read_branches
from vineppo.models.reward_model import RewardModel
from vineppo.types import Rollout

CERTAIN, IMPOSSIBLE = 0.99, 0.01
"""A token likelier than the first decides nothing; an alternative less likely than the second is not read."""


class RewardCritic:
    """It is frozen: it learns nothing, and is in no checkpoint."""

    def __init__(self, reward_model: RewardModel):
        check_branches(reward_model)
        self.reward_model = reward_model

    def action_values(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:  # [L, M] each
        tables = [alternatives_table(rollout.completion) for rollout in rollouts]
        wanted = [is_open(rollout, logprobs_LM) for rollout, (_, logprobs_LM) in zip(rollouts, tables, strict=True)]
        rows = [
            Branched(
                rollout.prompt_ids,
                rollout.token_ids,
                tuple((int(t), int(ids_LM[t, m])) for t, m in np.argwhere(open_LM)),
            )
            for rollout, (ids_LM, _), open_LM in zip(rollouts, tables, wanted, strict=True)
        ]
        values = []
        for open_LM, (of_states, of_branches) in zip(wanted, read_branches(self.reward_model, rows), strict=True):
            q_LM = np.repeat(np.array(of_states[:-1])[:, None], open_LM.shape[1], axis=1)
            q_LM[open_LM] = of_branches
            values.append(q_LM)
        return values

    def learn(self, rollouts: Sequence[Rollout], *, seed: int) -> dict[str, float]:
        return {}

    def memory(self) -> dict[str, float]:
        return self.reward_model.memory()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def load(self, folder: Path) -> None:
        pass


def is_open(rollout: Rollout, logprobs_LM: np.ndarray) -> np.ndarray:  # [L, M] bool
    """Which alternatives are read."""
    probs_LM = np.exp(logprobs_LM)
    open_L = (probs_LM.max(axis=1) < CERTAIN) & np.array(rollout.is_action)
    return open_L[:, None] & (probs_LM >= IMPOSSIBLE)
