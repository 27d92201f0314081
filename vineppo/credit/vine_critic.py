"""A critic that rollouts and vines teach, trusted as far as it has proved right: unbiased whatever it says.

RLOO less what the critic explains of the rewards (control_variate.py has the formula and why it is unbiased). The
critic is frozen while it judges an iteration and learns from that iteration's rewards afterwards. How far it is trusted
is fitted on earlier iterations and on the other groups of this one, never on a group's own rewards. Before the critic
has learnt anything this is RLOO, and it stays near RLOO for as long as the critic explains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vineppo.credit.common import CreditContext, credit_metrics, explained_variance
from vineppo.credit.config import VineCriticConfig
from vineppo.credit.control_variate import PARTS, JudgedGroup, fit_trust, read
from vineppo.credit.least_squares import Products, of_others
from vineppo.credit.states import sample_vines, state_at, state_boundaries, state_key
from vineppo.machine.files import read_json, write_json
from vineppo.machine.saved_state import restoring
from vineppo.protocols import ActionCritic
from vineppo.seeding import derive_seed
from vineppo.types import Assigned, Credit, Group, Rollout, UserError

STATE_FILE = "trust.json"
FORK = 0.9
"""A token is decided at a fork if no token was likelier than this."""
NUM_BINS = 10


@dataclass(frozen=True)
class Pending:
    """What the critic has judged and not learnt from yet."""

    rollouts: Sequence[Rollout]  # vines among them
    squares: Products


class VineCritic:
    Config = VineCriticConfig

    def __init__(self, config: VineCriticConfig, context: CreditContext, *, critic: ActionCritic | None = None):
        """With a critic that is there already, or with a new one on the context's policy."""
        num_alternatives = context.environment.params.num_alternatives
        if num_alternatives < 2:
            raise UserError(
                f"sampling.num_alternatives = {num_alternatives}: {config.name} weighs each token against those that "
                "might have come; set it to 2 or more, or leave it out for 8"
            )
        self.config = config
        self.environment = context.environment
        self.seed = context.seed
        self.critic = critic or make_critic(config, context)
        self.squares = Products.none(len(PARTS))
        self.num_iterations = 0  # in which the critic learnt
        self._pending: Pending | None = None

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        rollouts = [rollout for group in groups for rollout in group]
        readings = iter([read(*pair) for pair in zip(rollouts, self.critic.action_values(rollouts), strict=True)])
        judged = [JudgedGroup(group, [next(readings) for _ in group]) for group in groups]
        squares = [one.squares for one in judged]
        trusts = [self.trust(others) for others in of_others(squares, self.squares.decayed())]
        credits = [make_credits(*pair) for pair in zip(judged, trusts, strict=True)]
        vines = self.vines(rollouts, seed)
        shown = sum(squares, Products.none(len(PARTS)))
        self._pending = Pending([*rollouts, *vines], shown)
        advantages = [a for group in credits for credit in group for a in credit.advantages]
        metrics = trust_metrics(shown, trusts) | critic_metrics(judged) | credit_metrics(credits, advantages)
        return Assigned(credits, metrics | (vine_metrics(vines) if self.config.num_vines else {}))

    def trust(self, known: Products) -> np.ndarray:
        """In the parts, by what is known without the group that it is for."""
        if not self.num_iterations:
            return np.zeros(len(PARTS))
        return fit_trust(known, parts_of(self.config))

    def vines(self, rollouts: Sequence[Rollout], seed: int) -> list[Rollout]:
        if not self.config.num_vines:
            return []
        found = {}
        for rollout in rollouts:
            for boundary in state_boundaries(rollout, self.config.states)[1:-1]:  # the prompt has its siblings
                state = state_at(rollout, boundary)
                found[state_key(state)] = state, rollout.budget_at(boundary)
        states, budgets = [state for state, _ in found.values()], [budget for _, budget in found.values()]
        vines = sample_vines(self.environment, states, budgets, self.config.num_vines, seed=seed)
        return [
            Rollout(
                state.problem,
                state.prefix_ids,
                vine.completion,
                vine.said,
                vine.grade.reward,
                vine.grade.verdict,
                boundaries=(0, len(vine.completion.token_ids)),
                max_new_tokens=budget,
                action_mask=vine.action_mask,
            )
            for state, budget, siblings in zip(states, budgets, vines, strict=True)
            for vine in siblings
        ]

    def update(self, minibatch: object) -> dict[str, float]:
        """The critic learns at an iteration's first step; no seed or order of the policy's steps enters."""
        pending, self._pending = self._pending, None
        if pending is None:
            return {}
        if self.num_iterations:  # what a critic says before it has learnt is no evidence
            self.squares = self.squares.decayed() + pending.squares
        self.num_iterations += 1
        return self.critic.learn(pending.rollouts, seed=derive_seed(self.seed, "critic", self.num_iterations))

    def memory(self) -> dict[str, float]:
        return self.critic.memory()

    def save(self, folder: Path) -> None:
        self.critic.save(folder / "critic")
        trust = self.squares.as_json() | {"num_iterations": self.num_iterations}
        write_json(folder / "critic" / STATE_FILE, trust)

    def load(self, folder: Path) -> None:
        path = folder / "critic" / STATE_FILE
        self.critic.load(folder / "critic")
        trust = read_json(path)
        with restoring(path, f"what {self.config.name} has saved"):
            squares, num_iterations = self.squares.like(trust), trust["num_iterations"]
            if type(num_iterations) is not int or num_iterations < 0:
                raise ValueError(f"num_iterations = {num_iterations!r} is not a number of iterations")
        self.squares, self.num_iterations = squares, num_iterations


def parts_of(config: VineCriticConfig) -> list[str]:
    """Those that a constant is fitted for."""
    left_out = set() if config.control_variate else {"later_luck", "sibling_luck"}
    return [part for part in PARTS if part not in left_out | ({"best"} if config.baseline == "value" else set())]


def make_critic(config: VineCriticConfig, context: CreditContext) -> ActionCritic:
    from vineppo.learner.action_critic import HeadCritic

    if config.reward_model:
        from vineppo.learner.reward_critic import RewardCritic

        return RewardCritic(context.load_reward_model(config.reward_model))
    policy = context.load_policy() if config.critic.backbone == "own" else context.policy
    assert policy is not None, "without a critic, one is made on the context's policy"
    return HeadCritic(config.critic, policy, seed=derive_seed(context.seed, "action head"))


def make_credits(judged: JudgedGroup, trust: np.ndarray) -> list[Credit]:
    """The values at boundaries are the critic's, and the reward at the end."""
    return [
        Credit(
            rollout.boundaries,
            tuple(advantages_L.tolist()),
            values=(*reading.values_L[list(rollout.boundaries[:-1])].tolist(), rollout.reward),
        )
        for rollout, reading, advantages_L in zip(judged.group, judged.readings, judged.advantages(trust), strict=True)
    ]


def trust_metrics(shown: Products, trusts: Sequence[np.ndarray]) -> dict[str, float]:
    means = np.mean(trusts, axis=0)
    return {f"credit/trust_{part}": float(mean) for part, mean in zip(PARTS, means, strict=True)} | {
        "credit/square_left": shown.square_left(means)
    }


def vine_metrics(vines: Sequence[Rollout]) -> dict[str, float]:
    num_truncated = sum(vine.completion.finish_reason == "length" for vine in vines)
    return {"credit/num_vines": len(vines), "credit/num_vines_truncated": num_truncated}


def critic_metrics(judged: Sequence[JudgedGroup]) -> dict[str, float]:
    """Of what the critic said of the tokens that were sampled, before it learnt from them."""
    readings = [reading for one in judged for reading in one.readings]
    rewards = [rollout.reward for one in judged for rollout in one.group]
    rewards_N = np.repeat(rewards, [len(reading.values_L) for reading in readings])
    guesses_N = np.concatenate([reading.values_L + reading.luck_L for reading in readings])
    forks_N = np.concatenate([reading.top_probs_L for reading in readings]) < FORK
    return {
        "critic/explained_variance": explained_variance(guesses_N.tolist(), rewards_N.tolist()),
        "critic/explained_variance_forks": explained_variance(guesses_N[forks_N].tolist(), rewards_N[forks_N].tolist()),
        "critic/fork_frac": float(forks_N.mean()),
        "critic/calibration_error": calibration_error(rewards_N, guesses_N),
    }


def calibration_error(rewards_N: np.ndarray, guesses_N: np.ndarray) -> float:
    """Mean distance of guess and reward over bins of equal width, weighted by their tokens (Naeini et al. 2015)."""
    low, high = min(0.0, rewards_N.min(), guesses_N.min()), max(1.0, rewards_N.max(), guesses_N.max())
    bins_N = np.minimum((NUM_BINS * (guesses_N - low) / (high - low)).astype(int), NUM_BINS - 1)
    gaps = np.bincount(bins_N, weights=guesses_N - rewards_N, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(rewards_N))
