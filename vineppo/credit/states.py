"""Which states of a rollout are measured. Every rule here is a stopping rule.

Whether there is a boundary before token t is decided by the tokens before t, their log-probs, and the distribution
that t is drawn from; never by t itself, by what follows, or by how long the response becomes. Then a boundary says
nothing about tokens that the state there has not seen, and measured credit does not bias the gradient
(docs/methods.md). Cuts that look ahead do: before an unlikely token, at the highest entropies of the whole response,
spread evenly over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from vineppo.config import Config
from vineppo.environment import Environment, GradedCompletion, State
from vineppo.seeding import derive_seed
from vineppo.types import Alternatives, Rollout, SamplingParams, UserError

StateKey = tuple[str, tuple[int, ...]]  # problem id, prefix ids


def state_at(rollout: Rollout, boundary: int) -> State:
    mask = rollout.action_mask and rollout.action_mask[:boundary]
    return State(rollout.problem, rollout.prompt_ids, rollout.token_ids[:boundary], mask)


def state_key(state: State) -> StateKey:
    return state.problem.id, state.prefix_ids


def sample_vines(
    environment: Environment,
    states: Sequence[State],
    budgets: Sequence[int],
    num_vines: int | Sequence[int],
    *,
    seed: int,
    keep: bool = False,
) -> list[list[GradedCompletion]]:  # [S][K]
    """From every state, all in one engine call. A vine's draws follow from its state's tokens and its number there."""
    return environment.branch(
        states,
        budgets,
        num_vines,
        seed=lambda state, k: derive_seed(seed, "vine", *state_key(state), k),
        purpose="vine",
        keep=keep,
    )


class StatesConfig(Config):
    kind: Literal["segments", "turns", "stride", "forks", "rare"] = "segments"
    """segments: where the task cuts. turns: before every turn of the policy's. stride: before every `stride`-th token.
    forks: before a token whose likeliest
    choice has a probability below `threshold`; needs sampling.num_alternatives. rare: after a token whose own
    probability was below `threshold`."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens between states, of those that the policy wrote; 1 measures at every token."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Of forks and rare; by default 0.9 (Guo et al. 2025, "SPO", which cuts before rare tokens)."""
    every: int = Field(default=1, ge=1)
    """Keep every `every`-th of these states, from the prompt on; segments between them merge."""
    first: int | None = Field(default=None, ge=1)
    """Keep the first of those at most; the segment after the last one takes the rest of the response."""

    @model_validator(mode="after")
    def knobs_belong_to_their_kind(self) -> StatesConfig:
        if (self.kind == "stride") != (self.stride is not None):
            raise ValueError('kind = "stride" and stride, the tokens between states, need each other')
        if self.threshold is not None and self.kind not in ("forks", "rare"):
            raise ValueError(f'threshold is of kind = "forks" and "rare", not of {self.kind!r}')
        return self


def check_states(config: StatesConfig, params: SamplingParams) -> None:
    """Raises UserError where rollouts sampled like this cannot be cut like this."""
    if config.kind == "forks" and params.num_alternatives == 0:
        raise UserError(
            'states.kind = "forks" asks how sure the policy was of each token: set sampling.num_alternatives = 1'
        )


def state_boundaries(rollout: Rollout, config: StatesConfig) -> tuple[int, ...]:  # [S+1]
    """0 = b_0 < b_1 < ... < b_S = L; the states before the tokens b_0 .. b_{S-1} are to be measured.

    What the environment wrote (`action_mask`) belongs to the segment of the action before it: no state lies where the
    policy does not write next, a cut that would moves behind the environment's tokens, and these are never counted,
    rare, or forks. Raises UserError where alternatives are needed and missing.
    """
    length = len(rollout.token_ids)
    mask = rollout.action_mask or (True,) * length
    states = sorted({0, *_next_actions(_cuts(rollout, config, mask), mask)})
    return (*states[:: config.every][: config.first], length)


def find_alternatives(rollout: Rollout) -> tuple[Alternatives, ...]:  # [L]
    """Raises UserError where the engine gave none."""
    if rollout.completion.alternatives is None:
        raise UserError(
            "this credit needs the likeliest tokens before each draw, and the completions have none: set "
            "sampling.num_alternatives, with an engine that fills in Completion.alternatives"
        )
    return rollout.completion.alternatives


def _cuts(rollout: Rollout, config: StatesConfig, mask: Sequence[bool]) -> Iterable[int]:
    actions = [t for t, is_action in enumerate(mask) if is_action]
    highest = math.log(config.threshold or 0.9)
    if config.kind == "segments":
        return rollout.boundaries[1:-1]
    if config.kind == "turns":
        return [t for t in actions[1:] if not mask[t - 1]]
    if config.kind == "stride":
        return actions[:: config.stride]
    if config.kind == "forks":
        alternatives = find_alternatives(rollout)
        return [t for t in actions if alternatives[t][0][1] < highest]
    return [t + 1 for t in actions if rollout.completion.logprobs[t] < highest]


def _next_actions(cuts: Iterable[int], mask: Sequence[bool]) -> Iterable[int]:
    """Each cut, or the first action behind it; none where the response ends before one."""
    following, upcoming = [len(mask)] * (len(mask) + 1), len(mask)
    for t in reversed(range(len(mask))):
        upcoming = following[t] = t if mask[t] else upcoming
    return (following[cut] for cut in cuts if following[cut] < len(mask))
