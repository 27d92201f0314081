"""How large the bias of cuts that look ahead is: q (V(u) - Q(u, break)) at the boundaries of the paper's rule.

    python benchmarks/lookahead_bias.py RECIPE [KEY=VALUE ...] --out benchmarks/results/lookahead-bias/NAME.json

RECIPE is a training recipe whose task cuts lines; its policy is measured as it is sampled, at top_p 1. Rollouts of the
problems that it solves sometimes are cut as the paper's code cuts the finished text. There u, a state before a line
break, is a boundary only if the break comes. q is the chance of the very token that came, from the engine's log-probs;
V(u) and Q(u, break) are means over vines of their own from u and from u + that token. docs/methods.md, "Segments", has
the formula. `joint` is the same error with all that the rule looks at ("####" on the next line too): minus the
covariance, over vines from u, of whether the finished response has the boundary and of its reward.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vineppo.credit.vineppo import StateKey, state_at, state_key
from vineppo.environment import Environment, State
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine import runtime
from vineppo.methods import load_recipe
from vineppo.methods.train import TrainRecipe
from vineppo.rollouts import sample_groups
from vineppo.runs.setup import set_up
from vineppo.seeding import derive_seed
from vineppo.segments import decode_pieces, token_boundaries
from vineppo.tasks.paper_segments import cut_before_lines
from vineppo.types import Rollout


@dataclass(frozen=True)
class Vines:
    """Of one state [K]: rewards, lengths in tokens, and whether the paper's rule makes the state a boundary."""

    rewards: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray

    def halves(self) -> tuple[Vines, Vines]:
        return tuple(Vines(self.rewards[i::2], self.lengths[i::2], self.bounds[i::2]) for i in (0, 1))  # type: ignore[return-value]

    @property
    def value(self) -> float:
        return float(self.rewards.mean())

    @property
    def joint(self) -> float:
        n = len(self.rewards)
        return -float(((self.bounds - self.bounds.mean()) * (self.rewards - self.value)).sum()) / (n - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--problems", type=int, default=64, help="problems that are tried")
    parser.add_argument("--pool", type=int, help="of so many problems those with the shortest solutions are tried")
    parser.add_argument("--tries", type=int, default=8, help="rollouts of each, by which it is chosen")
    parser.add_argument("--rollouts", type=int, default=4, help="of each chosen problem, measured")
    parser.add_argument("--chosen", type=int, default=16, help="problems at most")
    parser.add_argument("--vines", type=int, default=16, help="from each state; even")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runtime.prepare()
    recipe = load_recipe(args.recipe, [*args.overrides, "sampling.top_p=1.0"])
    assert isinstance(recipe, TrainRecipe)
    with set_up(recipe) as setup:
        environment = setup.make_environment(setup.make_engine(), recipe.sampling)
        rollouts, tried = choose(environment, recipe, args)
        found = measure(environment, rollouts, args.vines)
        device = runtime.describe_machine(runtime.pick_device("cpu"))
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "recipe")}
    result = {**device, "recipe": str(args.recipe), **settings, "success_rate": tried, **found}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def choose(environment: Environment, recipe: TrainRecipe, args: argparse.Namespace) -> tuple[list[Rollout], float]:
    """Fresh rollouts of problems that were solved in some tries and not in all, and the share of right tries."""
    pool = environment.task.sample(args.pool or args.problems, seed=derive_seed("problems"))
    problems = sorted(pool, key=lambda problem: len(problem.solution))[: args.problems] if args.pool else pool
    sampling = recipe.sampling.model_copy(update={"group_size": args.tries})
    tries = sample_groups(environment, problems, sampling, seed=derive_seed("tries"))
    sometimes = [group[0].problem for group in tries if len({rollout.reward > 0 for rollout in group}) == 2]
    sampling = recipe.sampling.model_copy(update={"group_size": args.rollouts})
    groups = sample_groups(environment, sometimes[: args.chosen], sampling, seed=derive_seed("rollouts"))
    rate = float(np.mean([rollout.reward for group in tries for rollout in group]))
    return [rollout for group in groups for rollout in group], rate


def paper_boundaries(environment: Environment, token_ids: Sequence[int]) -> tuple[int, ...]:
    pieces = decode_pieces(environment.tokenizer, token_ids)
    return token_boundaries(pieces, cut_before_lines(environment.text(token_ids)))


def measure(environment: Environment, rollouts: Sequence[Rollout], num_vines: int) -> dict[str, Any]:
    paper = [paper_boundaries(environment, rollout.token_ids) for rollout in rollouts]
    wanted = {
        (i, place)
        for i, (rollout, bounds) in enumerate(zip(rollouts, paper, strict=True))
        for place in (*bounds[:-1], *rollout.boundaries[:-1], *(u + 1 for u in bounds[1:-1]))
    }
    states = {state_key(s): (s, rollouts[i].max_new_tokens - b) for i, b in wanted for s in [state_at(rollouts[i], b)]}
    vines = sample_vines(environment, states, num_vines)
    at = {(i, place): vines[state_key(state_at(rollouts[i], place))] for i, place in wanted}
    rows = []
    for i, (rollout, bounds) in enumerate(zip(rollouts, paper, strict=True)):
        for before, u in pairwise(bounds[:-1]):
            q = float(np.exp(rollout.completion.logprobs[u]))
            rows.append(describe(rollout.problem.id, q, at[i, u], at[i, u + 1], at[i, before]))
    costs = {
        name: [sum(at[i, b].lengths.mean() for b in bounds[:-1]) for i, bounds in enumerate(many)]
        for name, many in (("paper", paper), ("causal", [rollout.boundaries for rollout in rollouts]))
    }
    return {
        "num_problems": len({rollout.problem.id for rollout in rollouts}),
        "num_rollouts": len(rollouts),
        "num_states": len(states),
        "states_per_rollout": {
            "paper": float(np.mean([len(b) - 1 for b in paper])),
            "causal": float(np.mean([rollout.num_segments for rollout in rollouts])),
        },
        "vine_tokens_per_rollout_and_k": {name: float(np.mean(cost)) for name, cost in costs.items()},
        **summary(rows),
        "boundaries": rows,
    }


def sample_vines(
    environment: Environment, states: Mapping[StateKey, tuple[State, int]], num_vines: int
) -> dict[StateKey, Vines]:
    graded = environment.branch(
        [state for state, _ in states.values()],
        [budget for _, budget in states.values()],
        num_vines,
        seed=lambda state, k: derive_seed("vine", *state_key(state), k),
        purpose="vine",
    )
    found = {}
    for (key, (state, _)), siblings in zip(states.items(), graded, strict=True):
        start = len(state.response_ids)
        bounds = [start in paper_boundaries(environment, state.response_ids + c.completion.token_ids) for c in siblings]
        found[key] = Vines(
            np.array([c.grade.reward for c in siblings]),
            np.array([len(c.completion.token_ids) for c in siblings]),
            np.array(bounds, dtype=float),
        )
    return found


def describe(problem: str, q: float, at_u: Vines, behind: Vines, before: Vines) -> dict[str, Any]:
    """Squares are products of two independent halves, so that noise adds nothing to them."""
    halves = list(zip(at_u.halves(), behind.halves(), before.halves(), strict=True))
    errors = [q * (u.value - after.value) for u, after, _ in halves]
    advantages = [u.value - first.value for u, _, first in halves]
    return {
        "problem": problem,
        "q": q,
        "value": at_u.value,
        "value_behind_break": behind.value,
        "error": q * (at_u.value - behind.value),
        "error_squared": errors[0] * errors[1],
        "joint": at_u.joint,
        "joint_squared": at_u.halves()[0].joint * at_u.halves()[1].joint,
        "share_of_vines_with_boundary": float(at_u.bounds.mean()),
        "advantage_squared": advantages[0] * advantages[1],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over boundaries, 95 % intervals by bootstrap over problems."""
    columns: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(0))
    for name in rows[0]:
        if name != "problem":
            columns[name] = np.array([row[name] for row in rows])
    columns["absolute_error"] = np.abs(columns["error"])
    columns["share_sure"] = (columns["q"] > 0.99).astype(float)
    names = list(columns)

    def statistic(weights: np.ndarray) -> np.ndarray:
        means = {name: weighted_mean(columns[name], weights) for name in names}
        scale = means["advantage_squared"] or float("nan")
        ratios = [means[name] / scale for name in ("error_squared", "joint_squared")]
        return np.array([*means.values(), *ratios])

    found = bootstrap(statistic, [row["problem"] for row in rows], seed=0)
    labels = [*names, "error_squared / advantage_squared", "joint_squared / advantage_squared"]
    return {"num_boundaries": len(rows), "means": dict(zip(labels, found, strict=True))}


if __name__ == "__main__":
    main()
