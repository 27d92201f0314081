"""VinePPO: the value of every intermediate state is the mean reward of K continuations sampled from it.

Paper section 4. V(s_j) is measured for j < S, V(s_S) is the rollout's own reward R, and
A_j = V(s_{j+1}) - V(s_j) is copied to every token of segment j. Vines are never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.credit.allocation import allocate
from vineppo.credit.common import (
    CreditContext,
    broadcast_to_tokens,
    check_telescoping,
    credit_metrics,
    differences,
    first_advantages,
)
from vineppo.credit.states import (
    StateKey,
    StatesConfig,
    check_states,
    sample_vines,
    state_at,
    state_boundaries,
    state_key,
)
from vineppo.environment import State
from vineppo.types import Assigned, Credit, Group, Rollout, ValueEstimate


class VinePPOConfig(Named):
    name: str = "vineppo"
    num_vines: int = Field(default=9, ge=1)
    """Continuations per state (K). Upstream configs use 9."""
    vine_budget: Literal["remaining", "full"] = "remaining"
    """New tokens a vine may take: what the rollout had left, the value of the task that is trained; or, as the
    reference implementation has it, the whole max_new_tokens from every state."""
    states: StatesConfig = StatesConfig()
    """Which states are measured; the paper's are those where the task cuts."""
    max_states_per_rollout: int | None = Field(default=None, ge=1)
    """Measure the first states of a rollout only, at most this many; the segment after the last one takes the rest."""
    allocation: Literal["equal", "by_score"] = "equal"
    """by_score: not the paper's. States whose segments hold uncertain tokens get more vines than others, for the tokens
    that K from each would cost. With sampling.num_alternatives it knows better how uncertain."""


class VinePPO:
    Config = VinePPOConfig

    def __init__(self, config: VinePPOConfig, context: CreditContext):
        check_states(config.states, context.environment.params)
        self.config = config
        self.environment = context.environment

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        rollouts = [rollout for group in groups for rollout in group]
        boundaries = [self.boundaries(rollout) for rollout in rollouts]
        states: dict[StateKey, tuple[State, int]] = {}  # with the budget of its vines; equal states are measured once
        for rollout, cuts in zip(rollouts, boundaries, strict=True):
            for boundary in cuts[:-1]:
                state = state_at(rollout, boundary)
                states[state_key(state)] = state, self.budget(rollout, boundary)
        num_vines = self.config.num_vines
        counts = allocate(rollouts, boundaries, num_vines) if self.config.allocation == "by_score" else None
        estimates = self.estimate(states, seed=seed, counts=counts)
        cuts = iter(boundaries)
        credits = [[make_credit(rollout, next(cuts), estimates) for rollout in group] for group in groups]
        metrics = credit_metrics(credits, first_advantages(chain.from_iterable(credits)))
        num_states = sum(len(cuts) - 1 for cuts in boundaries)
        return Assigned(credits, vine_metrics(estimates) | metrics | {"credit/num_states": num_states})

    def boundaries(self, rollout: Rollout) -> tuple[int, ...]:
        states, most = self.config.states, self.config.max_states_per_rollout
        return state_boundaries(rollout, states if most is None else states.model_copy(update={"first": most}))

    def budget(self, rollout: Rollout, boundary: int) -> int:
        return rollout.budget_at(boundary if self.config.vine_budget == "remaining" else 0)

    def estimate(
        self,
        states: Mapping[StateKey, tuple[State, int]],
        *,
        seed: int,
        counts: Mapping[StateKey, int] | None = None,
    ) -> dict[StateKey, ValueEstimate]:
        """K vines from every state within its budget, or `counts`, all in one engine call; each state's draws are its
        own."""
        vines = sample_vines(
            self.environment,
            [state for state, _ in states.values()],
            [budget for _, budget in states.values()],
            self.config.num_vines if counts is None else [counts[key] for key in states],
            seed=seed,
        )
        return {
            key: ValueEstimate(
                *key,
                rewards=tuple(vine.grade.reward for vine in siblings),
                texts=self.environment.continuations(state, siblings),
                num_truncated=sum(vine.completion.finish_reason == "length" for vine in siblings),
            )
            for (key, (state, _)), siblings in zip(states.items(), vines, strict=True)
        }


def make_credit(rollout: Rollout, boundaries: tuple[int, ...], estimates: Mapping[StateKey, ValueEstimate]) -> Credit:
    measured = tuple(estimates[state_key(state_at(rollout, b))] for b in boundaries[:-1])
    values = (*(estimate.mean for estimate in measured), rollout.reward)
    advantages = broadcast_to_tokens(differences(values), boundaries)
    return check_telescoping(Credit(boundaries, advantages, values, estimates=measured))


def vine_metrics(estimates: Mapping[StateKey, ValueEstimate]) -> dict[str, float]:
    return {
        "credit/num_states_merged": len(estimates),
        "credit/num_vines": sum(len(estimate.rewards) for estimate in estimates.values()),
        "credit/num_vines_truncated": sum(estimate.num_truncated for estimate in estimates.values()),
    }
