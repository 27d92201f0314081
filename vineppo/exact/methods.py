"""The rows of `vineppo exact`: which estimators run in which worlds, and what their credit is on average.

To add one, add a `Row`. The estimators are those that train, unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from vineppo.credit.advantages import leave_one_out
from vineppo.credit.common import CreditContext
from vineppo.credit.grpo import GRPO, GRPOConfig
from vineppo.credit.potential import Potential, PotentialConfig
from vineppo.credit.ppo import PPO, PPOConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.tree import TreeConfig, TreeCredit
from vineppo.credit.vine_critic import VineCritic, VineCriticConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.credit.vines import Vines, VinesConfig
from vineppo.exact.chain import CHAINS
from vineppo.exact.critics import BootstrappedCredit, KnownActionCritic, TableCritic
from vineppo.exact.known import BestBaseline, KnownCritic, KnownPotential, full_budget_values, over_segments
from vineppo.exact.play import Cuts
from vineppo.exact.world import World
from vineppo.models import RewardModelConfig
from vineppo.protocols import ActionCritic, CreditEstimator
from vineppo.seeding import derive_seed
from vineppo.segments import cut_lines
from vineppo.tasks.paper_segments import cut_before_lines
from vineppo.types import Assigned, Group, Rollout

GROUP_SIZE = 8
CRITIC_ERROR = 0.2
SMALL = ("language", "fatal-8", "repair-8")
"""Worlds in which rows run that are dear, or that vary others."""
UNPAID = ("language", *(chain.name for chain in CHAINS if not chain.pays))
"""Worlds whose rewards are 0 and 1."""

Expected = Callable[[Rollout], Sequence[float]]
"""E[advantages | rollout], [L]: the mean over its vines, or over its siblings."""


@dataclass(frozen=True)
class Row:
    name: str
    make: Callable[[World, CreditContext], CreditEstimator]
    expected: Callable[[World, Any], Expected] | None = None
    """Of the estimator that `make` made; gives the exact bias by a sum over all responses. Not for one that trains on
    extra rollouts (exhaustive.py has the bias of those) or that learns."""
    worlds: Container[str] | None = None
    """None: all."""
    cuts: Cuts = cut_lines
    num_alternatives: int = 0
    num_warmup: int = 0
    """Batches that a learning estimator learns from before it is measured."""


def rows_of(world: World) -> list[Row]:
    return [row for row in ROWS if row.worlds is None or world.name in row.worlds]


def group_row(name: str, estimator: CreditEstimator, formula: Callable[[Sequence[float]], list[float]]) -> Row:
    """Of a formula that is linear in the siblings' rewards, which their mean then may stand for."""

    def expected(world: World, _: CreditEstimator) -> Expected:
        def mean(rollout: Rollout) -> list[float]:
            others = [world.value(rollout.problem.prompt)] * (GROUP_SIZE - 1)
            return [formula([rollout.reward, *others])[0]] * len(rollout.token_ids)

        return mean

    return Row(name, lambda world, context: estimator, expected)


def mean_over_siblings(world: World, formula: Callable[[Sequence[float]], list[float]]) -> Expected:
    """Where the other G - 1 rewards are 0 or 1, and the number of ones is binomial."""

    @cache
    def mean(reward: float, p: float) -> float:
        others = GROUP_SIZE - 1
        weights = [math.comb(others, k) * p**k * (1 - p) ** (others - k) for k in range(others + 1)]
        rewards = [[reward] + [1.0] * k + [0.0] * (others - k) for k in range(others + 1)]
        return math.fsum(weight * formula(row)[0] for weight, row in zip(weights, rewards, strict=True))

    return lambda rollout: [mean(rollout.reward, world.value(rollout.problem.prompt))] * len(rollout.token_ids)


def ppo_row(gae_lambda: float, error: float) -> Row:
    def make(world: World, context: CreditContext) -> PPO:
        return PPO(PPOConfig(gae_lambda=gae_lambda), critic=cast(Any, KnownCritic(world, error)))

    def expected(world: World, ppo: PPO) -> Expected:
        return lambda rollout: (
            ppo.credit(rollout, ppo.critic.values([(rollout.prompt_ids, rollout.token_ids)])[0]).advantages
        )

    return Row(f"PPO λ={gae_lambda:g}, {'wrong' if error else 'exact'} critic", make, expected)


def potential_row(error: float) -> Row:
    def make(world: World, context: CreditContext) -> Potential:
        config = PotentialConfig(reward_model=RewardModelConfig(path="none"))
        return Potential(config, reward_model=cast(Any, KnownPotential(world, error)))

    def expected(world: World, potential: Potential) -> Expected:
        def mean(rollout: Rollout) -> Sequence[float]:
            (phi,) = potential.reward_model.values([(rollout.prompt_ids, rollout.token_ids)])
            surplus = world.value(rollout.problem.prompt) - phi[0]  # of siblings, on average
            return potential.credit(rollout, phi, surplus).advantages

        return mean

    return Row(f"potential, {'wrong' if error else 'exact'} model", make, expected)


def vine_row(name: str, *, worlds: Container[str] | None = None, cuts: Cuts = cut_lines, **config: Any) -> Row:
    def expected(world: World, estimator: VinePPO) -> Expected:
        values = full_budget_values if estimator.config.vine_budget == "full" else World.values
        return lambda rollout: over_segments(
            values(world, world.text(rollout.prompt_ids + rollout.token_ids)), estimator.boundaries(rollout)
        )

    return Row(name, lambda _, context: VinePPO(VinePPOConfig(**config), context), expected, worlds, cuts)


def cut_before_end(text: str) -> list[int]:
    """Lines, but END joins the line before it, even behind a line break."""
    return [cut for cut in cut_lines(text) if cut < len(text)]


def cut_in_half(text: str) -> list[int]:
    """One state in the middle: states that are spread evenly over a response are moved by how it goes on."""
    return [(len(text) + 1) // 2] if text else []


def unmerged_row(name: str, *, worlds: Container[str], **config: Any) -> Row:
    merged = vine_row(name, **config)
    assert merged.expected is not None
    expected = merged.expected
    return Row(
        name,
        lambda world, context: Unmerged(merged.make(world, context)),
        lambda world, estimator: expected(world, estimator.estimator),
        worlds,
    )


def tree_row(name: str, *, worlds: Container[str] | None = None, num_alternatives: int = 0, **config: Any) -> Row:
    """Its baselines are fitted on earlier batches."""

    def make(_: World, context: CreditContext) -> TreeCredit:
        return TreeCredit(TreeConfig(**config), context)

    return Row(name, make, worlds=worlds, num_alternatives=num_alternatives, num_warmup=10)


def pooled_row(name: str, *, worlds: Container[str] | None = None, **config: Any) -> Row:
    """Its gains are fitted on earlier batches. exhaustive.py has its bias."""
    return Row(name, lambda _, context: Vines(VinesConfig(**config), context), worlds=worlds, num_warmup=10)


class Unmerged:
    """Vines of their own for every rollout. In small worlds siblings meet in most of their states."""

    def __init__(self, estimator: CreditEstimator):
        self.estimator = estimator

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        credits = [
            [self.estimator.assign([[r]], seed=derive_seed(seed, p, g)).credits[0][0] for g, r in enumerate(group)]
            for p, group in enumerate(groups)
        ]
        return Assigned(credits, {})


def critic_row(
    name: str,
    critic: Callable[[World], ActionCritic],
    *,
    gae_lambda: float | None = None,
    worlds: Container[str] | None = None,
    **config: Any,
) -> Row:
    """After it has learnt from five batches. exhaustive.py has its bias."""

    def make(world: World, context: CreditContext) -> CreditEstimator:
        estimator = VineCritic(VineCriticConfig(**config), context, critic=critic(world))
        return estimator if gae_lambda is None else BootstrappedCredit(estimator, gae_lambda)

    return Row(name, make, worlds=worlds, num_alternatives=VineCriticConfig.num_alternatives, num_warmup=5)


GRPO_PLAIN, GRPO_NO_STD = GRPO(GRPOConfig()), GRPO(GRPOConfig(divide_by_std=False))
ROWS = [
    group_row("RLOO", RLOO(RLOOConfig()), leave_one_out),  # the first: the others are compared with it
    group_row("GRPO without std", GRPO_NO_STD, GRPO_NO_STD.formula),
    Row(
        "GRPO",
        lambda world, context: GRPO_PLAIN,
        lambda world, _: mean_over_siblings(world, GRPO_PLAIN.formula),
        worlds=UNPAID,
    ),
    *(ppo_row(gae_lambda, error) for error in (0.0, CRITIC_ERROR) for gae_lambda in (1, 0.95, 0)),
    *(potential_row(error) for error in (0.0, CRITIC_ERROR)),
    Row(
        "exact Q, best baseline",
        lambda world, context: BestBaseline(world),
        lambda world, best: best.advantages,
    ),
    *(vine_row(f"VinePPO K={k}", num_vines=k) for k in (1, 3)),
    *(vine_row(f"VinePPO K={k}", num_vines=k, worlds=SMALL) for k in (9, 27)),
    unmerged_row("VinePPO K=9, unmerged", num_vines=9, worlds=("language",)),
    vine_row("VinePPO K=9, full budget", num_vines=9, vine_budget="full", worlds=("language",)),
    vine_row("VinePPO K=9, 2 states", num_vines=9, max_states_per_rollout=2, worlds=SMALL),
    vine_row("VinePPO K=9, paper's cuts", num_vines=9, cuts=cut_before_lines, worlds=("language",)),
    vine_row("VinePPO K=9, silent end", num_vines=9, cuts=cut_before_end, worlds=("language",)),
    vine_row("VinePPO K=9, cut in half", num_vines=9, cuts=cut_in_half, worlds=("language",)),
    pooled_row("vines"),
    pooled_row("vines, siblings alone", num_vines=0),
    pooled_row("vines K=1, where lacking", num_vines=1, allocation="lacking", worlds=SMALL),
    pooled_row("vines K=1, from all states", num_vines=1, allocation="even", worlds=SMALL),
    pooled_row("vines, GAE λ=0.5, baseline V", gae_lambda=0.5, baseline="value", worlds=SMALL),
    pooled_row("vines K=2, settled skipped", allocation="even", skip_settled=2, worlds=("dead-16",)),
    critic_row("critic", TableCritic),
    critic_row("critic, baseline V", TableCritic, baseline="value", worlds=SMALL),
    critic_row("critic, vines K=1", TableCritic, num_vines=1),
    critic_row("critic off by 0.2", lambda world: KnownActionCritic(world, 0.2)),
    critic_row("critic upside down", lambda world: KnownActionCritic(world, upside_down=True)),
    critic_row("critic, GAE λ=0.9", TableCritic, gae_lambda=0.9),
    tree_row("Tree K=0: RLOO, fitted", num_vines=0),
    tree_row("Tree K=1", num_vines=1),
    tree_row("Tree K=1, every 2nd", num_vines=1, states={"every": 2}),
    tree_row("Tree K=1, every 2nd fork", num_vines=1, states={"kind": "forks", "every": 2}, num_alternatives=1),
    tree_row("Tree K=1, first segments", num_vines=1, train="first", worlds=SMALL),
    tree_row("Tree K=9, first segments", num_vines=9, train="first", worlds=("language",)),
    tree_row("Tree K=1 at s_4, 2 at s_6", num_vines=(0, 0, 0, 1, 0, 2), worlds=SMALL),
    tree_row("Tree 8 x 8", num_vines=(0, 0, 0, 7), shape="tree", worlds=SMALL),
    tree_row("Tree 8 x 4 x 4", num_vines=(0, 3, 0, 3), shape="tree", worlds=SMALL),
    tree_row("Tree 8 x 2 x 2 x 2 x 2", num_vines=(1, 1, 1, 1), shape="tree", worlds=SMALL),
]
