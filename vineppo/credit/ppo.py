"""PPO: a critic, learnt beside the policy, says what every state is worth.

The critic is a whole copy of the initial policy with a value head (paper, section 3). Its advantages are generalised
advantage estimates over tokens; with gamma = lambda = 1, as in the paper's runs, A_t = R - V(s_t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, compress, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from vineppo.config import Named
from vineppo.credit.common import CreditContext, advantage_metrics, explained_variance, value_metrics
from vineppo.learner.config import CriticConfig
from vineppo.sample import Sample
from vineppo.seeding import derive_seed
from vineppo.types import Assigned, Credit, Group, Rollout

if TYPE_CHECKING:
    from vineppo.learner.critic import Critic


class PPOConfig(Named):
    name: str = "ppo"
    gamma: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    warmup_iterations: int = Field(default=0, ge=0)
    """First iterations in which the critic learns and the policy does not."""
    bootstrap_truncated: bool = False
    """Whether a response that the budget cut off ends in the critic's value of its last state, instead of in 0."""
    critic: CriticConfig = CriticConfig()


class PPO:
    Config = PPOConfig

    def __init__(self, config: PPOConfig, context: CreditContext | None = None, *, critic: Critic | None = None):
        """With a critic that is there already, or with a new one made from the context's policy."""
        self.config = config
        self.critic = critic or make_critic(config, context)
        self.num_iterations = 0  # in which the critic learnt
        self._assigned = 0  # the iteration, from 1, that credit was last assigned for; a stop may throw it away

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        rollouts = [rollout for group in groups for rollout in group]
        values = self.critic.values([(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts])
        credits = [self.credit(*pair) for pair in zip(rollouts, values, strict=True)]
        self._assigned = self.num_iterations + 1
        metrics = credit_metrics(rollouts, credits)
        rows = iter(credits)
        trains_policy = self._assigned > self.config.warmup_iterations
        return Assigned([[next(rows) for _ in group] for group in groups], metrics, trains_policy=trains_policy)

    def credit(self, rollout: Rollout, values: Sequence[float]) -> Credit:
        """From the critic's values [L+1] of the states before each token and after the last.

        Steps are the policy's: what the environment writes after a token is part of that token's outcome.
        """
        truncated = rollout.completion.finish_reason == "length"
        last_value = values[-1] if truncated and self.config.bootstrap_truncated else 0.0
        mask = rollout.is_action
        following = iter(
            compute_gae(
                rewards_of_actions(token_rewards(rollout), mask),
                [*compress(values, mask), last_value],
                gamma=self.config.gamma,
                gae_lambda=self.config.gae_lambda,
            )
        )
        advantages = [next(following) if is_action else 0.0 for is_action in mask]
        returns = tuple(advantage + value for advantage, value in zip(advantages, values, strict=False))
        return Credit(rollout.boundaries, tuple(advantages), token_values=tuple(values[:-1]), returns=returns)

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        self.num_iterations = self._assigned
        return self.critic.step(minibatch)

    def memory(self) -> dict[str, float]:
        return self.critic.memory()

    def save(self, folder: Path) -> None:
        self.critic.save(folder / "critic", {"num_iterations": self.num_iterations})

    def load(self, folder: Path) -> None:
        self.num_iterations = self.critic.load(folder / "critic")["num_iterations"]


def make_critic(config: PPOConfig, context: CreditContext | None) -> Critic:
    from vineppo.learner.critic import Critic
    from vineppo.models.make import make_critic_model

    assert context is not None, "without a critic, PPO makes one of the policy that the context loads"
    model = make_critic_model(context.load_policy(), derive_seed(context.seed, "value head"))
    return Critic(config.critic, model, total_steps=context.total_steps)


def token_rewards(rollout: Rollout) -> list[float]:  # [L]
    """What is earned after each token: a segment's reward after its last one."""
    rewards = [0.0] * len(rollout.token_ids)
    segment_rewards = rollout.segment_rewards or (*[0.0] * (rollout.num_segments - 1), rollout.reward)
    for end, reward in zip(rollout.boundaries[1:], segment_rewards, strict=True):
        rewards[end - 1] = reward
    return rewards


def rewards_of_actions(rewards: Sequence[float], mask: Sequence[bool]) -> list[float]:  # [actions]
    """What is earned after each action and before the next one; what comes before the first is nobody's."""
    starts = [t for t, is_action in enumerate(mask) if is_action]
    return [math.fsum(rewards[start:end]) for start, end in pairwise((*starts, len(rewards)))]


def returns_to_go(rollout: Rollout) -> list[float]:  # [L]
    """What is still earned from before each token on, without discount."""
    return list(accumulate(reversed(token_rewards(rollout))))[::-1]


def compute_gae(
    rewards: Sequence[float],  # [L] after each token
    values: Sequence[float],  # [L+1] before each token, and after the last
    *,
    gamma: float,
    gae_lambda: float,
) -> list[float]:  # [L]
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16). `values[L]` is 0 where the episode ends."""
    advantages = [0.0] * len(rewards)
    following = 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * values[t + 1] - values[t]
        following = delta + gamma * gae_lambda * following
        advantages[t] = following
    return advantages


def credit_metrics(rollouts: Sequence[Rollout], credits: Sequence[Credit]) -> dict[str, float]:
    pairs = list(zip(rollouts, credits, strict=True))
    values = [value for rollout, credit in pairs for value in compress(credit.token_values or (), rollout.is_action)]
    advantages = [a for rollout, credit in pairs for a in compress(credit.advantages, rollout.is_action)]
    returns = [to_go for rollout in rollouts for to_go in compress(returns_to_go(rollout), rollout.is_action)]
    return {
        **value_metrics(values, [credit.token_values[0] for credit in credits if credit.token_values]),
        **advantage_metrics(advantages),
        "critic/explained_variance": explained_variance(values, returns),
    }
