"""What estimators share: what they are made with, from segments to tokens, comparison within a group, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from vineppo.checks import plain_metrics
from vineppo.environment import Environment
from vineppo.models import RewardModelConfig
from vineppo.protocols import CreditEstimator, LearningEstimator
from vineppo.sample import Sample
from vineppo.types import Assigned, Credit, CreditError, Group, UserError, equal_rewards

if TYPE_CHECKING:
    from vineppo.models.reward_model import RewardModel


@dataclass(frozen=True)
class CreditContext:
    """What an estimator may be made with, besides its config."""

    environment: Environment
    load_policy: Callable[[], Any] = lambda: None
    """A copy of the policy that training starts from."""
    policy: Any = None
    """The model that trains, to be read as it stands: never changed, never kept."""
    total_steps: int = 1
    """Optimizer steps of the whole run as planned: with no prompt left out. Extra rollouts add none."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of models that an estimator loads besides."""

    def load_reward_model(self, config: RewardModelConfig) -> RewardModel:
        """Raises UserError where it is none, or none for the policy's tokens."""
        from vineppo.machine.runtime import pick_device
        from vineppo.models.reward_model import load_reward_model

        model = load_reward_model(config, device=pick_device(self.device))
        model.check_tokenizer(self.environment.tokenizer)
        return model


def assign_credit(estimator: CreditEstimator, groups: Sequence[Group], *, seed: int) -> Assigned:
    """What the estimator makes of the groups, checked; raises UserError that names it where that is no credit."""
    try:
        assigned = estimator.assign(groups, seed=seed)
        if not isinstance(assigned, Assigned):
            raise CreditError(f"assign() gave a {type(assigned).__name__}, not an Assigned")
        assigned.check(groups)
    except CreditError as error:
        raise UserError(f"credit estimator {type(estimator).__name__}: {error}") from error
    return assigned


def update_estimator(estimator: LearningEstimator, minibatch: Sequence[Sample]) -> dict[str, float]:
    """Its metrics, which may be nan where a step was skipped; raises UserError that names it where they are none."""
    metrics = estimator.update(minibatch)
    try:
        return plain_metrics(metrics, finite=False)
    except ValueError as error:
        raise UserError(f"credit estimator {type(estimator).__name__}: update(): {error}") from error


def differences(values: Sequence[float]) -> tuple[float, ...]:
    """[S+1] values -> [S] segment advantages, A_j = V(s_{j+1}) - V(s_j)."""
    return tuple(after - before for before, after in pairwise(values))


def broadcast_to_tokens(per_segment: Sequence[float], boundaries: Sequence[int]) -> tuple[float, ...]:
    """[S] -> [L]: every token of a segment gets its segment's number."""
    lengths = [end - start for start, end in pairwise(boundaries)]
    return tuple(number for number, length in zip(per_segment, lengths, strict=True) for _ in range(length))


def check_telescoping(credit: Credit) -> Credit:
    """For an estimator that promises it: every token's advantage is the change of the value over its segment.

    Then segment advantages add up to R - V(s_0).
    """
    assert credit.values is not None
    for j, (start, end) in enumerate(pairwise(credit.boundaries)):
        difference = credit.values[j + 1] - credit.values[j]
        if any(abs(advantage - difference) > 1e-6 for advantage in credit.advantages[start:end]):
            raise ValueError(
                f"advantages of segment {j} (tokens {start}..{end - 1}) are not values[{j + 1}] - values[{j}]"
            )
    return credit


def assign_by_group(groups: Sequence[Group], formula: Callable[[Sequence[float]], list[float]]) -> Assigned:
    """One number for a whole response, by a `formula` of its group's rewards [G] -> [G].

    Where they are all equal, nothing tells the responses apart: their advantages are 0 exactly.
    """
    credits = [credit_group(group, formula) for group in groups]
    return Assigned(credits, advantage_metrics([credit.advantages[0] for group in credits for credit in group]))


def credit_group(group: Group, formula: Callable[[Sequence[float]], list[float]]) -> list[Credit]:
    advantages = [0.0] * len(group) if equal_rewards(group) else formula([rollout.reward for rollout in group])
    return [
        Credit(rollout.boundaries, (advantage,) * len(rollout.token_ids))
        for rollout, advantage in zip(group, advantages, strict=True)
    ]


def advantage_metrics(advantages: Sequence[float]) -> dict[str, float]:
    """Before whitening; one number per segment (VinePPO), token (PPO) or response (GRPO, RLOO)."""
    return {
        "credit/advantage_std": math.sqrt(variance(advantages)),
        "credit/zero_frac": fmean(advantage == 0 for advantage in advantages),
    }


def value_metrics(values: Sequence[float], initial_values: Sequence[float]) -> dict[str, float]:
    """Of all states of an iteration, and of its prompts."""
    return {
        "credit/value_mean": fmean(values),
        "credit/value_std": math.sqrt(variance(values)),
        "credit/initial_value_mean": fmean(initial_values),
    }


def first_advantages(credits: Iterable[Credit]) -> list[float]:
    """Of every segment, all of whose tokens have the same."""
    return [credit.advantages[start] for credit in credits for start in credit.boundaries[:-1]]


def credit_metrics(credits: Sequence[Sequence[Credit]], advantages: Sequence[float]) -> dict[str, float]:
    """Of credits with values, and of their advantages, one for each thing that the estimator tells apart."""
    values = [credit.values for group in credits for credit in group if credit.values]
    return {
        **value_metrics([value for of_one in values for value in of_one[:-1]], [of_one[0] for of_one in values]),
        **advantage_metrics(advantages),
    }


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float:
    """1 - Var(return - value) / Var(return): 1 is perfect, 0 as good as a constant, and 0 where returns are equal."""
    of_returns = variance(returns)
    left = variance([to_go - value for to_go, value in zip(returns, values, strict=True)])
    return 1 - left / of_returns if of_returns else 0.0


def variance(numbers: Sequence[float]) -> float:
    """Over their number; 0 exactly where all are equal. `statistics.pvariance` is ten times slower."""
    shifted = [number - numbers[0] for number in numbers]
    mean = fmean(shifted) if shifted else 0.0
    return math.fsum([(x - mean) * (x - mean) for x in shifted]) / max(1, len(shifted))
