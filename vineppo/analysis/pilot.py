"""A few vines from the states of a few responses, one per problem: all that the forecast of credit's worth needs.

Takes an environment and groups that it sampled with alternatives, so a run's policy and a world whose truth is known
are asked alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vineppo.alternatives import alternatives_table, sampled_logprobs
from vineppo.analysis.forks import BASELINES, Fork, squares
from vineppo.analysis.moments import Chain
from vineppo.credit.states import state_at
from vineppo.environment import CUT_OFF, Environment, GradedCompletion, State
from vineppo.episode import runs_of
from vineppo.seeding import derive_seed
from vineppo.thinking import said
from vineppo.types import Completion, Group, Rollout

NUM_ALTERNATIVES = 8
MAX_ACTIONS = 4
MIN_PROBABILITY = 0.01
"""Of an alternative that is tried at a fork; what is rarer counts as average."""


@dataclass(frozen=True)
class Uncertainty:
    """Of every token of a completion: the square of its score's length, with respect to the logits."""

    energy_L: np.ndarray  # of the token that was sampled: 1 - 2 pi(y) + sum_a pi(a)^2
    expected_L: np.ndarray  # its mean over what might have been sampled: 1 - sum_a pi(a)^2


def with_alternatives(environment: Environment) -> Environment:
    """Samples the same, with the likeliest tokens reported."""
    return replace(environment, params=replace(environment.params, num_alternatives=NUM_ALTERNATIVES))


def uncertainty(completion: Completion) -> Uncertainty:
    """Of probabilities that are not reported each is at most the last one that is: half of that is taken."""
    table = alternatives_table(completion)
    probs_LM = np.exp(table[1])
    rest_L = np.maximum(1 - probs_LM.sum(axis=1), 0.0)
    squares_L = (probs_LM**2).sum(axis=1) + rest_L * np.minimum(rest_L, probs_LM[:, -1]) / 2
    probs_L = np.exp(sampled_logprobs(completion, *table))
    return Uncertainty(np.maximum(1 - 2 * probs_L + squares_L, 0.0), np.maximum(1 - squares_L, 0.0))


@dataclass(frozen=True)
class Pilot:
    """Of one problem: a response with measured states, its siblings, and a few of its forks."""

    chain: Chain
    group: Group
    group_energies: np.ndarray  # [G] of the whole responses
    fork_squares: np.ndarray  # [S, 3] of exact credit with each of forks.BASELINES, summed over a segment's tokens
    fork_mass: float  # probability of the actions that were tried, on average
    num_vines: int


@dataclass(frozen=True)
class Trial:
    """A token of a response at which other actions are tried, chosen in proportion to its expected energy."""

    position: int
    actions: tuple[int, ...]
    probabilities: np.ndarray
    square_sum: float
    weight: float  # so that the mean over trials of weight times square is the sum over the response's tokens


def sample_pilots(
    environment: Environment, groups: Sequence[Group], *, num_vines: int, num_forks: int, seed: int
) -> list[Pilot]:
    """The first response of every group: `num_vines` from each of its states but the prompt, whose value its siblings
    know, and from every action that is tried at `num_forks` of its tokens. All in one engine call."""
    trials = [choose_trials(group[0], num_forks, seed=derive_seed(seed, "forks", i)) for i, group in enumerate(groups)]
    wanted = [
        [*inner_states(group[0]), *(state for trial in of_group for state in fork_states(group[0], trial))]
        for group, of_group in zip(groups, trials, strict=True)
    ]
    flat, last_tokens = [state for states in wanted for state in states], find_last_tokens(environment, groups)
    vines = iter(sample_vines(environment, flat, num_vines, seed=seed, last_tokens=last_tokens))
    return [
        make_pilot(group, of_group, [next(vines) for _ in states])
        for group, of_group, states in zip(groups, trials, wanted, strict=True)
    ]


def inner_states(rollout: Rollout) -> list[tuple[State, int]]:  # [S - 1]
    """With the new tokens that a vine may take there."""
    return [(state_at(rollout, b), rollout.budget_at(b)) for b in rollout.boundaries[1:-1]]


def fork_states(rollout: Rollout, trial: Trial) -> list[tuple[State, int]]:
    before = state_at(rollout, trial.position)
    mask = None if before.action_mask is None else (*before.action_mask, True)
    ids, left = before.response_ids, rollout.budget_at(trial.position) - 1
    return [(replace(before, response_ids=(*ids, action), action_mask=mask), left) for action in trial.actions]


def choose_trials(rollout: Rollout, num_forks: int, *, seed: int) -> list[Trial]:
    expected_L = masked(rollout, uncertainty(rollout.completion).expected_L)
    total = expected_L.sum()
    if total < 1e-9:
        return []
    positions = np.random.default_rng(seed).choice(len(expected_L), size=num_forks, p=expected_L / total)
    return [make_trial(rollout, int(t), float(expected_L[t]), float(total)) for t in positions]


def make_trial(rollout: Rollout, position: int, expected: float, total: float) -> Trial:
    assert rollout.completion.alternatives is not None
    likeliest, *others = rollout.completion.alternatives[position][:MAX_ACTIONS]
    tried = [likeliest, *(pair for pair in others if np.exp(pair[1]) >= MIN_PROBABILITY)]
    probabilities = np.exp([logprob for _, logprob in tried])
    return Trial(position, tuple(action for action, _ in tried), probabilities, 1 - expected, total / expected)


def masked(rollout: Rollout, column_L: np.ndarray) -> np.ndarray:
    """0 on tokens that the environment wrote."""
    return column_L if rollout.action_mask is None else column_L * np.array(rollout.action_mask)


def sample_vines(
    environment: Environment,
    states: Sequence[tuple[State, int]],
    num_vines: int,
    *,
    seed: int,
    last_tokens: frozenset[int],
) -> list[list[GradedCompletion]]:  # [n][K], or [n][1] of a state that is over
    """A response that is over already is its own only continuation. Equal states have vines of their own each."""
    if environment.takes_turns:  # it says whether a response is over
        states = [(replace(s, turn_is_over=turn_is_over(environment, s, last_tokens)), left) for s, left in states]
    over = {i: ended for i, (state, left) in enumerate(states) if (ended := end(environment, state, left, last_tokens))}
    jobs = [(i, k) for i in range(len(states)) if i not in over for k in range(num_vines)]
    sampled = iter(
        environment.finish(
            [states[i][0] for i, _ in jobs],
            [states[i][1] for i, _ in jobs],
            [derive_seed(seed, "pilot", i, k) for i, k in jobs],
            purpose="vine",
        )
    )
    return [[over[i]] if i in over else [next(sampled) for _ in range(num_vines)] for i in range(len(states))]


def end(environment: Environment, state: State, left: int, last_tokens: frozenset[int]) -> GradedCompletion | None:
    """The response as it is graded where its last token has ended it; `last_tokens` do."""
    text = environment.text(state.response_ids, state.action_mask)
    nothing = Completion((), (), "eos", 0)
    if environment.takes_turns:
        return GradedCompletion(nothing, text, CUT_OFF) if left < 1 and not state.turn_is_over else None
    if turn_is_over(environment, state, last_tokens):
        answer = said(text, environment.thinking)
        return GradedCompletion(nothing, text, environment.grader.grade([(state.problem, answer)])[0])
    return GradedCompletion(nothing, text, CUT_OFF) if left < 1 else None


def turn_is_over(environment: Environment, state: State, last_tokens: frozenset[int]) -> bool:
    turn = runs_of(state.response_ids, state.action_mask)[-1]
    return turn[-1] in last_tokens or has_stop(environment, turn)


def has_stop(environment: Environment, turn: tuple[int, ...]) -> bool:
    return any(stop in environment.tokenizer.decode(turn) for stop in environment.params.stop)


def find_last_tokens(environment: Environment, groups: Sequence[Group]) -> frozenset[int]:
    """Those that have ended a turn of the policy's, be its response over or not, and be it no stop string's."""
    return frozenset(
        turn[-1] for group in groups for r in group for turn in finished_turns(r) if not has_stop(environment, turn)
    )


def finished_turns(rollout: Rollout) -> list[tuple[int, ...]]:
    turns = runs_of(rollout.token_ids, rollout.action_mask)[::2]
    return turns[:-1] if rollout.completion.finish_reason == "length" else turns


def make_pilot(group: Group, trials: Sequence[Trial], vines: Sequence[Sequence[GradedCompletion]]) -> Pilot:
    """`vines` of the inner states of the first response, then of every action that was tried."""
    num_states = group[0].num_segments - 1
    tried = iter(vines[num_states:])
    forks = [make_fork(trial, [next(tried) for _ in trial.actions]) for trial in trials]
    return Pilot(
        chain=make_chain(group, vines[:num_states]),
        group=group,
        group_energies=np.array([masked(r, uncertainty(r.completion).energy_L).sum() for r in group]),
        fork_squares=sum_forks(group[0], trials, forks),
        fork_mass=float(np.mean([trial.probabilities.sum() for trial in trials])) if trials else 1.0,
        num_vines=sum(map(len, vines)),
    )


def sum_forks(rollout: Rollout, trials: Sequence[Trial], forks: Sequence[Fork]) -> np.ndarray:  # [S, 3]
    """Over the tokens of each segment, from the few that were of_group."""
    sums_S3 = np.zeros((rollout.num_segments, len(BASELINES)))
    for trial, fork in zip(trials, forks, strict=True):
        segment = bisect_right(rollout.boundaries, trial.position) - 1
        sums_S3[segment] += trial.weight * squares(fork) / len(trials)
    return sums_S3


def make_fork(trial: Trial, vines: Sequence[Sequence[GradedCompletion]]) -> Fork:
    means, spreads, counts = moments_of([[vine.grade.reward for vine in siblings] for siblings in vines])
    return Fork(trial.probabilities, trial.square_sum, means, spreads / counts)


def make_chain(group: Group, vines: Sequence[Sequence[GradedCompletion]]) -> Chain:
    rollout = group[0]
    rewards = [[vine.grade.reward for vine in siblings] for siblings in vines]
    means, spreads, counts = moments_of([[sibling.reward for sibling in group[1:]], *rewards])
    found = uncertainty(rollout.completion)
    starts, logprobs_L = rollout.boundaries[:-1], np.array(rollout.completion.logprobs)
    return Chain(
        problem=rollout.problem.id,
        reward=rollout.reward,
        num_tokens=rollout.num_actions,
        energies=np.add.reduceat(masked(rollout, found.energy_L), starts),
        expected_energies=np.add.reduceat(masked(rollout, found.expected_L), starts),
        values=means,
        spreads=spreads,
        counts=counts,
        costs=np.array([mean_length(row) for row in (group, *vines)]),
        sharers=np.array([sum(r.token_ids[:b] == rollout.token_ids[:b] for r in group) for b in starts]),
        logprobs=np.add.reduceat(logprobs_L, starts),
    )


def mean_length(sampled: Sequence[Rollout] | Sequence[GradedCompletion]) -> float:
    return float(np.mean([one.num_actions for one in sampled]))


def moments_of(rewards: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [n] each
    """Means, variances of one reward without bias, and counts. A single reward is certain: its response was over."""
    return (
        np.array([np.mean(row) for row in rewards]),
        np.array([np.var(row, ddof=1) if len(row) > 1 else 0.0 for row in rewards]),
        np.array([len(row) for row in rewards]),
    )
