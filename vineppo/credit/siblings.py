"""Credit by comparison with siblings: one number for a whole response. What GRPO and RLOO have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vineppo.credit.parts import Parts
from vineppo.credit.spread import advantage_metrics
from vineppo.credit.stateless import Stateless
from vineppo.types import Credit, Group, equal_rewards


class Siblings(Stateless):
    def __init__(self, config: Any):
        self.config = config
        self._metrics: dict[str, float] = {}

    @classmethod
    def make(cls, config: Any, parts: Parts) -> Siblings:
        return cls(config)

    def advantages(self, rewards: Sequence[float]) -> list[float]:  # [G]
        """From the rewards of siblings, [G], which are not all equal."""
        raise NotImplementedError

    def assign(self, groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:  # [P][G]
        credits = [self._credits(group) for group in groups]
        self._metrics = advantage_metrics([credit.advantages[0] for of_group in credits for credit in of_group])
        return credits

    def _credits(self, group: Group) -> list[Credit]:
        """All tokens of a response get its advantage; siblings with equal rewards have advantage 0 exactly."""
        rewards = [rollout.reward for rollout in group]
        advantages = [0.0] * len(group) if equal_rewards(group) else self.advantages(rewards)
        return [
            Credit(rollout.boundaries, (advantage,) * len(rollout.token_ids))
            for rollout, advantage in zip(group, advantages, strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)
