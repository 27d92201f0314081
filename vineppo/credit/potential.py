"""Potential: a reward model as a potential, whose differences are process rewards that leave the optimum where it is.

Ng, Harada and Russell 1999: paying Phi(s') - Phi(s) for every step on top of the reward, with Phi = 0 once the
response is over, changes no policy's rank. What is still earned from s_t on is then R - Phi(s_t), whatever lies
between: the process rewards telescope into a baseline. So the policy gradient is that of R alone, for any Phi.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vineppo.config import Named
from vineppo.credit.advantages import leave_one_out
from vineppo.credit.common import CreditContext, broadcast_to_tokens, credit_metrics, explained_variance
from vineppo.models import RewardModelConfig
from vineppo.types import Assigned, Credit, Group, Rollout

if TYPE_CHECKING:
    from vineppo.models.reward_model import RewardModel


class PotentialConfig(Named):
    name: str = "potential"
    reward_model: RewardModelConfig
    states: Literal["segments", "tokens"] = "segments"
    """Where Phi is read: where a token's segment begins, which `vineppo prm` learns, or before every token."""
    group_baseline: bool = True
    """Also subtract by how much the siblings earned more than Phi(s_0): RLOO of the shaped rewards. It makes up for a
    model that is too hopeful or too gloomy, and with a constant Phi it is RLOO."""


class Potential:
    Config = PotentialConfig

    def __init__(
        self, config: PotentialConfig, context: CreditContext | None = None, *, reward_model: RewardModel | None = None
    ):
        """With a reward model that is there already, or with the one that the config names."""
        self.config = config
        if reward_model is None:
            assert context is not None, "without a reward model, one is loaded for the context's policy"
            reward_model = context.load_reward_model(config.reward_model)
        self.reward_model = reward_model

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        rows = iter(self.reward_model.values([(r.prompt_ids, r.token_ids) for group in groups for r in group]))
        credits = [self.credit_group(group, [next(rows) for _ in group]) for group in groups]
        return Assigned(credits, metrics(groups, credits) | self.reward_model.memory())

    def credit_group(self, group: Group, potentials: Sequence[Sequence[float]]) -> list[Credit]:
        """From the potential before each token and after the last, [G][L+1]."""
        surplus = [rollout.reward - row[0] for rollout, row in zip(group, potentials, strict=True)]
        baselines = [0.0] * len(group)
        if self.config.group_baseline and len(group) > 1:
            baselines = [own - beyond for own, beyond in zip(surplus, leave_one_out(surplus), strict=True)]
        return [self.credit(*row) for row in zip(group, potentials, baselines, strict=True)]

    def credit(self, rollout: Rollout, potentials: Sequence[float], baseline: float) -> Credit:
        """A_t = R - Phi(s_t) - baseline."""
        at_segments = [potentials[start] for start in rollout.boundaries[:-1]]
        by_token = self.config.states == "tokens"
        read = potentials[:-1] if by_token else broadcast_to_tokens(at_segments, rollout.boundaries)
        advantages = tuple(rollout.reward - baseline - phi for phi in read)
        return Credit(rollout.boundaries, advantages, values=(*at_segments, rollout.reward))


def metrics(groups: Sequence[Group], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    pairs = [pair for group in zip(groups, credits, strict=True) for pair in zip(*group, strict=True)]
    values = [value for _, credit in pairs for value in (credit.values or ())[:-1]]
    rewards = [rollout.reward for rollout, credit in pairs for _ in credit.boundaries[:-1]]
    return {
        **credit_metrics(credits, [advantage for _, credit in pairs for advantage in credit.segment_advantages]),
        "critic/explained_variance": explained_variance(values, rewards),
    }
