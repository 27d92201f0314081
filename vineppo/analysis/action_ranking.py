"""Can an estimator tell the best next step? (paper, section 7, "Identifying promising actions")"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vineppo.analysis.measured import AnalysisConfig, draw_groups, vine_rewards
from vineppo.analysis.reference_values import ReferenceValues
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, Subject, last_checkpoints, open_subject
from vineppo.credit.growing import continue_rollout
from vineppo.credit.ppo import PPO
from vineppo.credit.states import state_at
from vineppo.environment import State
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine.tables import Row
from vineppo.report.charts import bars
from vineppo.seeding import derive_seed
from vineppo.types import Rollout

TITLE = "Ranking of next steps"
TEXT = (
    "From a state, distinct next segments are drawn once for all estimators; the reference value after each says how "
    "good it is. top_1: how often an estimator's favourite is the best (or as good as the best), of the states in "
    "which not all are equally good; above_chance: less what a random choice scores there. pairs: how often it orders "
    "two of them rightly, a tie counting one half; pairs whose references are equal are left out, and chance is 0.5. "
    "Steps that end the response have a known value and are no test, so they are left out too. References have "
    "errors, so a perfect estimator scores a little below 1. Intervals: 95 %, bootstrap over problems."
)


@dataclass(frozen=True)
class Choice:
    """A state and the segments that may follow it, as the states that they lead to."""

    state: State
    after: list[State]
    budgets: list[int]
    earned: list[float]
    """Process rewards up to each of `after`, where the task has some; a critic's value is of what is still to come."""


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    rows: list[Row] = []
    counts: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            choices, num_states = draw_choices(subject, config)
            counts.append({**checkpoint.header, "states_tried": num_states, "states_used": len(choices)})
            if choices:
                rows += ranking_rows(subject, choices, config)
    charts = {
        name: plot(
            bars,
            f"{title}, last checkpoints",
            [row for row in last_checkpoints(rows, checkpoints) if row["measure"] == name],
            by=("estimator", "method"),
            x="estimator",
            y="estimate",
            called="share",
            colour_by="method",
        )
        for name, title in (
            ("top_1", "Best next step found"),
            ("above_chance", "Best next step found, above chance"),
            ("pairs", "Pairs of next steps ordered rightly"),
        )
    }
    return Result("action_ranking", TITLE, TEXT, {"ranking": rows, "states": counts}, charts)


def draw_choices(subject: Subject, config: AnalysisConfig) -> tuple[list[Choice], int]:
    """One state per problem, at random along its response, wherever enough distinct segments follow it."""
    rollouts = [group[0] for group in draw_groups(subject, config, group_size=1)]
    rng = np.random.default_rng(derive_seed(config.seed, "states"))
    positions = [rollout.boundaries[rng.integers(rollout.num_segments)] for rollout in rollouts]
    states = [state_at(rollout, position) for rollout, position in zip(rollouts, positions, strict=True)]
    completions = subject.environment.branch(
        states,
        [rollout.budget_at(position) for rollout, position in zip(rollouts, positions, strict=True)],
        config.num_draws,
        seed=lambda state, k: derive_seed(config.seed, "actions", state.problem.id, state.prefix_ids, k),
        purpose="reference",
    )
    choices = []
    for rollout, position, continuations in zip(rollouts, positions, completions, strict=True):
        found: dict[tuple[int, ...], tuple[Rollout, float]] = {}
        for graded in continuations:
            whole = continue_rollout(subject.environment, rollout, position, graded)
            if (segment := next_segment(whole, position)) is not None:
                earned = max(segment[1], found.get(segment[0], (whole, segment[1]))[1], key=abs)  # 0 of one cut off
                found[segment[0]] = whole, earned
        if len(found) >= config.num_actions:
            taken = list(found.items())[: config.num_actions]
            after = [(whole, position + len(segment)) for segment, (whole, _) in taken]
            budgets = [whole.budget_at(end) for whole, end in after]
            earned = [earned for _, (_, earned) in taken]
            choices.append(Choice(state_at(rollout, position), [state_at(*place) for place in after], budgets, earned))
    return choices, len(states)


def next_segment(rollout: Rollout, start: int) -> tuple[tuple[int, ...], float] | None:
    """The segment that begins there, and what is earned by its end. None where it ends the response, or none begins."""
    ends = [b for b in rollout.boundaries if b > start]
    if start not in rollout.boundaries or len(ends) < 2:
        return None
    rewards = rollout.segment_rewards or ()
    return rollout.token_ids[start : ends[0]], math.fsum(rewards[: rollout.boundaries.index(ends[0])])


def ranking_rows(subject: Subject, choices: Sequence[Choice], config: AnalysisConfig) -> list[Row]:
    shape = (len(choices), config.num_actions)
    after = [(state, budget) for choice in choices for state, budget in zip(choice.after, choice.budgets, strict=True)]
    reference = ReferenceValues.of(subject, config.num_reference, seed=config.seed).values(
        [state for state, _ in after], [budget for _, budget in after]
    )
    true_CA = np.array(reference).reshape(shape)
    rewards = vine_rewards(subject, after, max(config.vines), seed=config.seed)
    predictions = {f"VinePPO K={k}": rewards[:, :k].mean(axis=1).reshape(shape) for k in config.vines}
    if subject.ppo:
        predictions["critic"] = critic_predictions(subject.ppo, choices)
    problems = [choice.state.problem.id for choice in choices]
    return [
        {**subject.checkpoint.header, "estimator": name, "measure": measure, **found}
        for name, predicted_CA in predictions.items()
        for measure, found in ranking(predicted_CA, true_CA, problems, seed=config.seed).items()
    ]


def critic_predictions(ppo: PPO, choices: Sequence[Choice]) -> np.ndarray:  # [C, A]
    """Of the whole reward, as references are: what the critic says is still to come, and what was earned before."""
    after = [(state.prompt_ids, state.response_ids) for choice in choices for state in choice.after]
    earned_CA = np.array([choice.earned for choice in choices])
    return np.array([row[-1] for row in ppo.critic.values(after)]).reshape(earned_CA.shape) + earned_CA


def ranking(
    predicted_CA: np.ndarray, true_CA: np.ndarray, problems: Sequence[str], *, seed: int
) -> dict[str, dict[str, float | None]]:
    """top_1, by how much it is above chance, and pairs, of C choices among A actions."""
    best_CA = true_CA == true_CA.max(axis=1, keepdims=True)
    favourite_CA = predicted_CA == predicted_CA.max(axis=1, keepdims=True)
    top_C = (best_CA & favourite_CA).sum(axis=1) / favourite_CA.sum(axis=1)  # one of equal favourites, at random
    chance_C = best_CA.mean(axis=1)
    open_C = chance_C < 1
    pairs = list(combinations(range(true_CA.shape[1]), 2))
    true_CP = np.stack([np.sign(true_CA[:, i] - true_CA[:, j]) for i, j in pairs], axis=1)
    predicted_CP = np.stack([np.sign(predicted_CA[:, i] - predicted_CA[:, j]) for i, j in pairs], axis=1)
    apart_CP = true_CP != 0
    right_C = (((true_CP * predicted_CP + 1) / 2) * apart_CP).sum(axis=1)
    apart_C = apart_CP.sum(axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        top_1 = weighted_mean(top_C, weights * open_C)
        pairs_apart = (weights * apart_C).sum()
        pairs_right = (weights * right_C).sum() / pairs_apart if pairs_apart else np.nan
        return np.array([top_1, top_1 - weighted_mean(chance_C, weights * open_C), pairs_right])

    return dict(zip(("top_1", "above_chance", "pairs"), bootstrap(statistic, problems, seed=seed), strict=True))
