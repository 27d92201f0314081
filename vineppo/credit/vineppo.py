"""VinePPO: the value of every intermediate state is the mean reward of K continuations sampled from it.

Paper section 4. V(s_j) is measured for j < S, V(s_S) is the rollout's own reward R, and
A_j = V(s_{j+1}) - V(s_j) is copied to every token of segment j. Vines are never trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from vineppo.config import Named
from vineppo.credit.parts import Parts
from vineppo.credit.spread import advantage_metrics, differences, spread, value_metrics
from vineppo.credit.stateless import Stateless
from vineppo.environment import Environment, State
from vineppo.seeding import derive_seed
from vineppo.types import Credit, Group, Rollout, ValueEstimate

StateKey = tuple[str, tuple[int, ...]]  # problem id, prefix ids


class VinePPOConfig(Named):
    name: str = "vineppo"
    num_vines: int = Field(default=9, ge=1)
    """Continuations per state (K). Upstream configs use 9."""
    vine_budget: Literal["remaining", "full"] = "remaining"
    """New tokens a vine may take: what the rollout had left, the value of the task that is trained; or, as the
    reference implementation has it, the whole max_new_tokens from every state."""
    max_states_per_rollout: int | None = Field(default=None, ge=1)
    """Estimate at most this many states of a rollout, evenly spaced from the prompt on; segments between them merge."""


class VinePPO(Stateless):
    Config = VinePPOConfig

    def __init__(self, config: VinePPOConfig, environment: Environment):
        self.config = config
        self.environment = environment
        self._metrics: dict[str, float] = {}

    @classmethod
    def make(cls, config: VinePPOConfig, parts: Parts) -> VinePPO:
        return cls(config, parts.environment)

    def assign(self, groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:  # [P][G]
        boundaries = [[self.boundaries(rollout) for rollout in group] for group in groups]
        estimates = self.estimate(
            {
                key: (state, self.budget(rollout, boundary))
                for group, group_boundaries in zip(groups, boundaries, strict=True)
                for rollout, kept in zip(group, group_boundaries, strict=True)
                for boundary in kept[:-1]
                for key, state in [state_at(rollout, boundary)]
            },
            seed=seed,
        )
        credits = [
            [make_credit(rollout, kept, estimates) for rollout, kept in zip(group, group_boundaries, strict=True)]
            for group, group_boundaries in zip(groups, boundaries, strict=True)
        ]
        self._metrics |= credit_metrics(credits)
        return credits

    def boundaries(self, rollout: Rollout) -> tuple[int, ...]:
        """The rollout's boundaries, thinned evenly where there are more states than may be estimated."""
        num_states, limit = rollout.num_segments, self.config.max_states_per_rollout
        if limit is None or num_states <= limit:
            return rollout.boundaries
        return (*(rollout.boundaries[i * num_states // limit] for i in range(limit)), rollout.boundaries[-1])

    def budget(self, rollout: Rollout, boundary: int) -> int:
        return rollout.max_new_tokens - (boundary if self.config.vine_budget == "remaining" else 0)

    def estimate(self, states: Mapping[StateKey, tuple[State, int]], *, seed: int) -> dict[StateKey, ValueEstimate]:
        """K vines from every state within its budget, all in one engine call; each state's draws are its own."""
        vines = self.environment.branch(
            [state for state, _ in states.values()],
            [budget for _, budget in states.values()],
            self.config.num_vines,
            seed=lambda state, k: derive_seed(seed, "vine", *state_key(state), k),
            purpose="vine",
        )
        reasons = Counter(vine.completion.finish_reason for of_state in vines for vine in of_state)
        self._metrics = {
            "credit/num_states_merged": len(states),
            "credit/num_vines": sum(reasons.values()),
            "credit/num_vines_truncated": reasons["length"],
        }
        return {
            key: ValueEstimate(
                *key,
                rewards=tuple(vine.grade.reward for vine in of_state),
                texts=self.environment.continuations(state, of_state),
            )
            for (key, (state, _)), of_state in zip(states.items(), vines, strict=True)
        }

    def metrics(self) -> dict[str, float]:
        return dict(self._metrics)


def state_key(state: State) -> StateKey:
    return state.problem.id, state.prefix_ids


def state_at(rollout: Rollout, boundary: int) -> tuple[StateKey, State]:
    state = State(rollout.problem, rollout.prompt_ids, rollout.token_ids[:boundary])
    return state_key(state), state


def make_credit(rollout: Rollout, boundaries: tuple[int, ...], estimates: Mapping[StateKey, ValueEstimate]) -> Credit:
    measured = tuple(estimates[state_at(rollout, b)[0]] for b in boundaries[:-1])
    values = (*(estimate.mean for estimate in measured), rollout.reward)
    return Credit(boundaries, spread(differences(values), boundaries), values, estimates=measured)


def credit_metrics(credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    flat = [credit for group in credits for credit in group]
    values = [value for credit in flat if credit.values for value in credit.values[:-1]]
    advantages = [credit.advantages[start] for credit in flat for start in credit.boundaries[:-1]]
    return {
        **value_metrics(values, [credit.values[0] for credit in flat if credit.values]),
        **advantage_metrics(advantages),
        "credit/num_states": len(values),
    }
