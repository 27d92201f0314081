"""PPO: a critic, learnt beside the policy, says what every state is worth.

The critic is a whole copy of the initial policy with a value head (paper, section 3). Its advantages are generalised
advantage estimates over tokens; with gamma = lambda = 1, as in the paper's runs, A_t = R - V(s_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import pvariance

from pydantic import Field

from vineppo.config import Named
from vineppo.credit.parts import Parts
from vineppo.credit.spread import advantage_metrics, value_metrics
from vineppo.learner.config import CriticConfig
from vineppo.learner.critic import Critic
from vineppo.learner.losses import compute_gae
from vineppo.models.make import make_critic_model
from vineppo.seeding import derive_seed
from vineppo.types import Credit, Group, Rollout, Sample


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

    def __init__(self, config: PPOConfig, critic: Critic):
        self.config = config
        self.critic = critic
        self.num_iterations = 0  # in which the critic learnt
        self._assigned = 0  # the iteration, from 1, that credit was last assigned for; a stop may throw it away
        self._metrics: dict[str, float] = {}

    @classmethod
    def make(cls, config: PPOConfig, parts: Parts) -> PPO:
        model = make_critic_model(parts.load_policy(), derive_seed(parts.seed, "value head"))
        return cls(config, Critic(config.critic, model, total_steps=parts.total_steps))

    @property
    def ready(self) -> bool:
        return self._assigned > self.config.warmup_iterations

    def assign(self, groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:  # [P][G]
        rollouts = [rollout for group in groups for rollout in group]
        values = self.critic.values([(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts])
        credits = [self.credit(*pair) for pair in zip(rollouts, values, strict=True)]
        self._assigned = self.num_iterations + 1
        self._metrics = credit_metrics(rollouts, credits)
        rows = iter(credits)
        return [[next(rows) for _ in group] for group in groups]

    def credit(self, rollout: Rollout, values: Sequence[float]) -> Credit:
        """From the critic's values [L+1] of the states before each token and after the last."""
        truncated = rollout.completion.finish_reason == "length"
        last_value = values[-1] if truncated and self.config.bootstrap_truncated else 0.0
        rewards = [0.0] * (len(values) - 2) + [rollout.reward]
        advantages = compute_gae(
            rewards, [*values[:-1], last_value], gamma=self.config.gamma, gae_lambda=self.config.gae_lambda
        )
        returns = tuple(advantage + value for advantage, value in zip(advantages, values, strict=False))
        return Credit(rollout.boundaries, tuple(advantages), token_values=tuple(values[:-1]), returns=returns)

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        self.num_iterations = self._assigned
        return self.critic.step(minibatch)

    def metrics(self) -> dict[str, float]:
        return self._metrics | self.critic.memory()

    def save(self, folder: Path) -> None:
        self.critic.save(folder / "critic", {"num_iterations": self.num_iterations})

    def load(self, folder: Path) -> None:
        self.num_iterations = self.critic.load(folder / "critic")["num_iterations"]


def credit_metrics(rollouts: Sequence[Rollout], credits: Sequence[Credit]) -> dict[str, float]:
    values = [value for credit in credits for value in credit.token_values or ()]
    advantages = [advantage for credit in credits for advantage in credit.advantages]
    rewards = [rollout.reward for rollout in rollouts for _ in rollout.token_ids]
    errors = [reward - value for reward, value in zip(rewards, values, strict=True)]
    spread = pvariance(rewards)
    return {
        **value_metrics(values, [credit.token_values[0] for credit in credits if credit.token_values]),
        **advantage_metrics(advantages),
        "critic/explained_variance": 1 - pvariance(errors) / spread if spread else 0.0,
    }
