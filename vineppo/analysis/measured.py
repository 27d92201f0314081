"""Frozen states with their reference values, and what every estimator of values says of the same states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from vineppo.analysis.reference_values import ReferenceValues
from vineppo.analysis.subject import Subject
from vineppo.config import Config
from vineppo.credit.common import CreditContext
from vineppo.credit.states import state_at, state_key
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.environment import State
from vineppo.rollouts import earned_before, sample_groups
from vineppo.seeding import derive_seed
from vineppo.types import Group, Problem, Rollout


class AnalysisConfig(Config):
    """How much is measured; `vineppo analyze` takes these as KEY=VALUE."""

    split: str = "test"
    """Whose problems the states come from; "train" draws them as training does."""
    num_problems: int = Field(default=64, ge=1)
    num_reference: int = Field(default=256, ge=2)
    """Vines of a reference value."""
    vines: tuple[PositiveInt, ...] = Field(default=(1, 3, 9, 27), min_length=1)
    """The K that VinePPO is judged with."""
    group_size: int = Field(default=8, ge=2)
    """Responses to a problem. Where states are measured, they are those of the first one."""
    num_actions: int = Field(default=5, ge=2)
    """action_ranking: distinct next segments to rank."""
    num_draws: int = Field(default=40, ge=2)
    """action_ranking: continuations of a state in which they are looked for."""
    num_minibatches: int = Field(default=16, ge=4)
    """gradient_variance: disjoint minibatches that the problems are dealt to."""
    num_pilots: int = Field(default=32, ge=2)
    """pays: problems, with one response each whose states are measured."""
    pilot_vines: int = Field(default=3, ge=2)
    """pays: vines of each of those states."""
    pilot_forks: int = Field(default=2, ge=1)
    """pays: tokens of each of those responses at which other actions are tried."""
    temperatures: tuple[NonNegativeFloat, ...] = Field(default=(0.0, 0.35, 0.6, 1.0, 1.3), min_length=1)
    last_only: bool = False
    """Only the last checkpoint of each run; by default all that it has kept."""
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """Of one checkpoint, n states: their reference values and predictions, [n] each."""

    problems: list[str]
    positions: np.ndarray  # j / S: 0 at the prompt, towards 1 at the end
    reference: np.ndarray
    predictions: dict[str, np.ndarray]
    rollouts: np.ndarray  # which response a state is of; its states follow each other
    rewards: np.ndarray  # of that response


def main_estimators(config: AnalysisConfig) -> tuple[str, ...]:
    """Those that a chart has room for: the critic, VinePPO with 9 vines (or the most that there are), the group."""
    return ("critic", f"VinePPO K={9 if 9 in config.vines else max(config.vines)}", "group mean")


def draw_problems(subject: Subject, config: AnalysisConfig) -> list[Problem]:
    task = subject.environment.task
    if config.split == "train":
        return task.sample(config.num_problems, seed=derive_seed(config.seed, "problems"))
    return task.split(config.split)[: config.num_problems]


def draw_groups(subject: Subject, config: AnalysisConfig, *, group_size: int | None = None) -> list[Group]:  # [P][G]
    """Responses of the checkpoint's own policy, sampled as training samples them but with seeds of the analysis."""
    sampling = subject.recipe.sampling.model_copy(update={"group_size": group_size or config.group_size})
    seed = derive_seed(config.seed, "rollouts", subject.checkpoint.iteration)
    return sample_groups(subject.environment, draw_problems(subject, config), sampling, seed=seed)


def states_of(rollout: Rollout) -> list[tuple[State, int]]:  # [S]
    """Every state of a response but the last, with the new tokens it may still take."""
    return [(state_at(rollout, b), rollout.budget_at(b)) for b in rollout.boundaries[:-1]]


def measure(subject: Subject, config: AnalysisConfig) -> Measured:
    """The states of one response per problem.

    Estimators: VinePPO with fresh vines, the run's critic if it has one, the mean reward of the group (what GRPO and
    RLOO stand on, the response itself included), and the constant that is right on average.
    """
    groups = draw_groups(subject, config)
    rollouts = [group[0] for group in groups]
    states = [pair for rollout in rollouts for pair in states_of(rollout)]
    sizes = [rollout.num_segments for rollout in rollouts]
    reference = np.array(
        ReferenceValues.of(subject, config.num_reference, seed=config.seed).values(
            [state for state, _ in states], [budget for _, budget in states]
        )
    )
    predictions = predict_with_vines(subject, states, config)
    if subject.ppo:
        predictions["critic"] = critic_values(subject, rollouts)
    means = [fmean(rollout.reward for rollout in group) for group in groups]
    predictions["group mean"] = np.repeat(means, sizes)
    predictions["constant"] = np.full(len(states), reference.mean())
    return Measured(
        problems=[state.problem.id for state, _ in states],
        positions=np.concatenate([np.arange(size) / size for size in sizes]),
        reference=reference,
        predictions=predictions,
        rollouts=np.repeat(np.arange(len(rollouts)), sizes),
        rewards=np.repeat([rollout.reward for rollout in rollouts], sizes),
    )


def predict_with_vines(
    subject: Subject, states: Sequence[tuple[State, int]], config: AnalysisConfig
) -> dict[str, np.ndarray]:
    """V by K vines for every K of the config: the first K of the largest number, as a vine's seed is its own."""
    rewards = vine_rewards(subject, states, max(config.vines), seed=config.seed)
    return {f"VinePPO K={k}": rewards[:, :k].mean(axis=1) for k in config.vines}


def vine_rewards(subject: Subject, states: Sequence[tuple[State, int]], k: int, *, seed: int) -> np.ndarray:  # [n, K]
    estimator = VinePPO(VinePPOConfig(num_vines=k), CreditContext(subject.environment))
    wanted = {state_key(state): (state, budget) for state, budget in states}
    estimates = estimator.estimate(wanted, seed=derive_seed(seed, "prediction"))
    return np.array([estimates[state_key(state)].rewards for state, _ in states])


def critic_values(subject: Subject, rollouts: Sequence[Rollout]) -> np.ndarray:
    """The critic's V of every state, read where PPO reads it, as vines have it: with what was earned before."""
    assert subject.ppo is not None
    rows = subject.ppo.critic.values([(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts])
    return np.array(
        [
            row[b] + earned
            for rollout, row in zip(rollouts, rows, strict=True)
            for b, earned in zip(rollout.boundaries[:-1], earned_before(rollout), strict=True)
        ]
    )
