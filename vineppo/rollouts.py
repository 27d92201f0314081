"""Rollouts: problems in, graded and segmented groups out. What happens to odd responses is decided here, before credit.

A truncated response has reward 0; one that cannot be cut is one segment; none is dropped, so every credit estimator
trains on the same tokens. Prompts that do not fit are skipped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, pstdev
from typing import get_args

from pydantic import Field, model_validator

from vineppo.config import Config
from vineppo.cutting import cut_response, needs_what_follows
from vineppo.environment import Environment, GradedCompletion, State
from vineppo.episode import TurnLimits
from vineppo.seeding import derive_seed
from vineppo.types import (
    Group,
    Problem,
    Rollout,
    SamplingParams,
    UserError,
    Verdict,
    equal_rewards,
    mean_named_rewards,
)


class SamplingConfig(Config):
    prompts_per_iteration: int = Field(ge=1)
    group_size: int = Field(ge=1)
    """Rollouts per prompt (G)."""
    max_new_tokens: int = Field(ge=1)
    """Longest response, in tokens that the policy writes; one that reaches it unfinished has reward 0."""
    max_turns: int | None = Field(default=None, ge=1)
    """Of the policy, in a response; one that goes on after them is cut off, as by `max_new_tokens`."""
    max_turn_tokens: int | None = Field(default=None, ge=1)
    """Longest turn; one that reaches it unfinished cuts the response off."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longer prompts are skipped; by default what the model's context leaves beside one new token."""
    temperature: float = Field(default=1.0, gt=0)
    """Also divides the logits in the loss, so that the trained policy is the sampled one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    num_alternatives: int = Field(default=0, ge=0)
    """Likeliest tokens to keep, with their log-probabilities, for every token of rollouts and vines: credit that looks
    for forks needs them. Each takes about 120 bytes until the next iteration. What is sampled does not change."""
    max_resamples: int = Field(default=0, ge=0)
    """Times that prompts whose responses all have the same reward are replaced by new ones (Yu et al. 2025, "DAPO",
    dynamic sampling). What is left after the last time is kept as it is."""

    @model_validator(mode="after")
    def groups_of_one_are_always_equal(self) -> SamplingConfig:
        if self.max_resamples and self.group_size == 1:
            raise ValueError("max_resamples replaces groups of equal rewards, which all groups of size 1 are")
        return self

    def limits(self) -> TurnLimits:
        return TurnLimits(self.max_turns, self.max_turn_tokens)

    def params(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_p, self.top_k, self.stop, self.num_alternatives)


@dataclass(frozen=True)
class Sampled:
    """The rollouts of an iteration, and what was left out on the way."""

    groups: list[Group]  # [P][G]
    num_prompts_too_long: int
    num_groups_replaced: int
    num_looking_ahead: int
    """Rollouts in which a boundary depends on what follows it, as far as one look at each tells."""


def sample_iteration(environment: Environment, config: SamplingConfig, *, seed: Callable[..., int]) -> Sampled:
    """New problems and a group for each; `seed` maps what is drawn to its seed."""
    groups: list[Group] = []
    num_too_long = num_replaced = 0
    for attempt in range(config.max_resamples + 1):
        again = (attempt,) if attempt else ()
        wanted = config.prompts_per_iteration - len(groups)
        drawn = environment.task.sample(wanted, seed=seed("problems", *again))
        taken = {group[0].problem.id for group in groups}
        problems = [problem for problem in drawn if problem.id not in taken]
        if groups and not any(map(environment.reset, problems)):
            found = []  # of the few that were to be replaced, none fits
        else:
            found = sample_groups(environment, problems, config, seed=seed("policy", *again))
        kept = found if attempt == config.max_resamples else [group for group in found if not equal_rewards(group)]
        groups += kept
        num_too_long += len(problems) - len(found)
        num_replaced += len(found) - len(kept)
        if len(groups) == config.prompts_per_iteration:
            break
    num_looking_ahead = sum(needs_what_follows(environment, rollout) for group in groups for rollout in group)
    return Sampled(groups, num_too_long, num_replaced, num_looking_ahead)


def sample_groups(
    environment: Environment, problems: Sequence[Problem], config: SamplingConfig, *, seed: int
) -> list[Group]:  # [P][G]
    starts = [state for state in map(environment.reset, problems) if state is not None]
    if not starts:
        raise UserError(f"all {len(problems)} prompts are longer than {environment.max_prompt_tokens} tokens")
    completions = environment.branch(
        starts,
        [config.max_new_tokens] * len(starts),
        config.group_size,
        seed=lambda state, g: derive_seed(seed, state.problem.id, g),
        purpose="policy",
        keep=True,  # vines start from them
    )
    return [
        [make_rollout(environment, state, graded, config.max_new_tokens) for graded in siblings]
        for state, siblings in zip(starts, completions, strict=True)
    ]


def check_policy_version(groups: Sequence[Group], version: int) -> None:
    """A sampler that has missed an update would make its rollouts off-policy, and nothing else would show it."""
    found = {rollout.completion.policy_version for group in groups for rollout in group}
    if found - {version}:
        raise RuntimeError(f"the engine sampled with weights of version {sorted(found)}, the policy's is {version}")


def make_rollout(environment: Environment, state: State, graded: GradedCompletion, max_new_tokens: int) -> Rollout:
    completion, mask = graded.completion, graded.action_mask
    boundaries, earned = cut_response(
        environment.task,
        environment.tokenizer,
        completion.token_ids,
        mask,
        graded.text,
        graded.grade.segment_rewards,
        environment.thinking,
    )
    return Rollout(
        problem=state.problem,
        prompt_ids=state.prompt_ids,
        completion=completion,
        text=graded.said,
        reward=graded.grade.reward,
        verdict=graded.grade.verdict,
        boundaries=boundaries,
        max_new_tokens=max_new_tokens,
        segment_rewards=earned,
        named_rewards=graded.grade.named_rewards,
        action_mask=mask,
    )


def rollout_metrics(sampled: Sampled) -> dict[str, float]:
    groups = sampled.groups
    rollouts = [rollout for group in groups for rollout in group]
    rewards = [rollout.reward for rollout in rollouts]
    reasons = Counter(rollout.completion.finish_reason for rollout in rollouts)
    verdicts = Counter(rollout.verdict for rollout in rollouts if rollout.completion.finish_reason != "length")
    metrics: dict[str, float] = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/solved_prompts_frac": fmean(max(r.reward for r in group) > 0 for group in groups),
        "rollouts/num": len(rollouts),
        "rollouts/num_prompts_too_long": sampled.num_prompts_too_long,
        "rollouts/num_groups_replaced": sampled.num_groups_replaced,
        "rollouts/num_equal_groups": sum(map(equal_rewards, groups)),
        "rollouts/num_truncated": reasons["length"],
        "rollouts/num_one_segment": sum(rollout.num_segments == 1 for rollout in rollouts),
        "rollouts/num_looking_ahead": sampled.num_looking_ahead,
        "rollouts/length_mean": fmean(rollout.num_actions for rollout in rollouts),
        "rollouts/segments_mean": fmean(rollout.num_segments for rollout in rollouts),
    }
    named = mean_named_rewards([rollout.named_rewards for rollout in rollouts])
    metrics |= {f"reward/named_{name}": mean for name, mean in named.items()}
    return metrics | {f"grades/num_{verdict}": verdicts[verdict] for verdict in get_args(Verdict)}


def earned_before(rollout: Rollout) -> list[float]:  # [S]
    """Rewards of the segments before each one: 0 where all of the reward comes at the end."""
    rewards = rollout.segment_rewards or (0.0,) * rollout.num_segments
    return list(accumulate(rewards[:-1], initial=0.0))
