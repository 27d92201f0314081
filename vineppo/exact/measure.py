"""`vineppo exact`: every credit estimator against the truth, in the world of exact_world.py.

The estimators are the ones that train, unchanged, and so is what samples their rollouts. Nothing is whitened or
clipped. What a policy gradient is on average is known by enumeration of all responses, and measured besides.
Shapes as in exact_world.py: S rows of the policy's table, A actions; N batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vineppo.credit.advantages import leave_one_out
from vineppo.credit.common import CreditContext, broadcast_to_tokens, differences
from vineppo.credit.grpo import GRPO, GRPOConfig
from vineppo.credit.ppo import PPO, PPOConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.environment import Environment, GradedCompletion, State
from vineppo.exact.world import (
    BUDGET,
    PROMPTS,
    World,
    default_policy,
    is_over,
    make_environment,
    make_world,
    policy_gradient,
    to_text,
    true_gradient,
)
from vineppo.machine.files import write_json
from vineppo.protocols import CreditEstimator
from vineppo.rollouts import SamplingConfig, make_rollout, sample_groups
from vineppo.seeding import derive_seed
from vineppo.types import Completion, Credit, Grade, Group, Problem, Rollout, UserError

GROUP_SIZE = 8
SAMPLING = SamplingConfig(prompts_per_iteration=len(PROMPTS), group_size=GROUP_SIZE, max_new_tokens=BUDGET)
CRITIC_ERROR = 0.2


@dataclass(frozen=True)
class Method:
    name: str
    environment: Environment
    credit: Callable[..., list[list[Credit]]]
    """(groups, seed=...) -> credits, [P][G]."""
    expected: Callable[[Rollout], Sequence[float]]
    """E[advantages | rollout], [L]: the mean over its vines, or over its siblings."""


def make_methods(world: World, theta_SA: np.ndarray) -> list[Method]:
    plain = make_environment(theta_SA)
    silent = make_environment(theta_SA, special="=")
    grpo, no_std, rloo = GRPO(GRPOConfig()), GRPO(GRPOConfig(divide_by_std=False)), RLOO(RLOOConfig())
    return [
        Method("RLOO", plain, credits_of(rloo), mean_over_siblings(world, leave_one_out)),
        Method("GRPO without std", plain, credits_of(no_std), mean_over_siblings(world, no_std.formula)),
        Method("GRPO", plain, credits_of(grpo), mean_over_siblings(world, grpo.formula)),
        *(ppo_method(world, plain, gae_lambda, 0.0) for gae_lambda in (1, 0.95, 0)),
        *(ppo_method(world, plain, gae_lambda, CRITIC_ERROR) for gae_lambda in (1, 0.95, 0)),
        *(vine_method(world, plain, f"VinePPO K={k}", num_vines=k) for k in (1, 3, 9, 27)),
        unmerged(vine_method(world, plain, "VinePPO K=9, unmerged", num_vines=9)),
        vine_method(world, silent, "VinePPO K=9, silent end", num_vines=9),
        vine_method(world, plain, "VinePPO K=9, 2 states", num_vines=9, max_states_per_rollout=2),
    ]


def credits_of(estimator: CreditEstimator) -> Callable[..., list[list[Credit]]]:
    return lambda groups, *, seed: estimator.assign(groups, seed=seed).credits


def mean_over_siblings(
    world: World, formula: Callable[[Sequence[float]], list[float]]
) -> Callable[[Rollout], Sequence[float]]:
    """The other G - 1 rewards are 0 or 1, and the number of ones is binomial."""

    @cache
    def mean(reward: float, p: float) -> float:
        others = GROUP_SIZE - 1
        weights = [math.comb(others, k) * p**k * (1 - p) ** (others - k) for k in range(others + 1)]
        rewards = [[reward] + [1.0] * k + [0.0] * (others - k) for k in range(others + 1)]
        return math.fsum(weight * formula(row)[0] for weight, row in zip(weights, rewards, strict=True))

    return lambda rollout: [mean(rollout.reward, world.value[rollout.problem.prompt])] * len(rollout.token_ids)


def ppo_method(world: World, environment: Environment, gae_lambda: float, error: float) -> Method:
    critic = KnownCritic(world, error)
    ppo = PPO(PPOConfig(gae_lambda=gae_lambda), critic=cast(Any, critic))

    def expected(rollout: Rollout) -> Sequence[float]:
        return ppo.credit(rollout, critic.values([(rollout.prompt_ids, rollout.token_ids)])[0]).advantages

    name = f"PPO λ={gae_lambda:g}, {'wrong' if error else 'exact'} critic"
    return Method(name, environment, credits_of(ppo), expected)


class KnownCritic:
    """V itself, or `error` above or below it: a coin decided for every state, once and for all."""

    def __init__(self, world: World, error: float):
        self.world, self.error = world, error

    def values(self, responses: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[float]]:
        """V of the state before every response token and after the last, [L+1] for each (prompt_ids, response_ids)."""
        texts = [to_text(prompt_ids + response_ids) for prompt_ids, response_ids in responses]
        return [[self.value(text[: t + 1]) for t in range(len(text))] for text in texts]

    def value(self, state: str) -> float:
        return self.world.value[state] + (self.error if derive_seed("critic", state) % 2 else -self.error)


def vine_method(world: World, environment: Environment, name: str, **config: Any) -> Method:
    estimator = VinePPO(VinePPOConfig(**config), CreditContext(environment))

    def expected(rollout: Rollout) -> Sequence[float]:
        boundaries = estimator.boundaries(rollout)
        return broadcast_to_tokens(
            differences([world.value[full_text(rollout)[: 1 + b]] for b in boundaries]), boundaries
        )

    return Method(name, environment, credits_of(estimator), expected)


def unmerged(method: Method) -> Method:
    """Vines of their own for every rollout. In so small a world siblings meet in most of their states."""

    def credit(groups: Sequence[Group], *, seed: int) -> list[list[Credit]]:
        return [
            [method.credit([[rollout]], seed=derive_seed(seed, p, g))[0][0] for g, rollout in enumerate(group)]
            for p, group in enumerate(groups)
        ]

    return Method(method.name, method.environment, credit, method.expected)


def all_rollouts(world: World, environment: Environment) -> list[tuple[Rollout, float]]:
    """Every response there is as a rollout, and its probability; those of all prompts add up to 1."""
    return [
        (known_rollout(world, environment, text), reach / len(PROMPTS))
        for text, reach in world.reach.items()
        if is_over(text)
    ]


def known_rollout(world: World, environment: Environment, text: str) -> Rollout:
    """The rollout that the program would make of this response, without sampling it."""
    prompt_ids, token_ids = (tuple(environment.tokenizer.encode(part)) for part in (text[0], text[1:]))
    completion = Completion(token_ids, (0.0,) * len(token_ids), "eos" if text[-1] == "=" else "length", 0)
    state = State(Problem(text[0], text[0], text[0]), prompt_ids)
    grade = Grade(world.value[text], "correct" if world.value[text] else "wrong")
    return make_rollout(environment, state, GradedCompletion(completion, environment.text(token_ids), grade), BUDGET)


def expected_gradients(world: World, methods: Sequence[Method]) -> list[np.ndarray]:  # [M][S, A]
    """The mean of each method's policy gradient: a sum over all responses."""
    known = {environment: all_rollouts(world, environment) for environment in {m.environment for m in methods}}
    return [
        policy_gradient(world, [(full_text(rollout), m.expected(rollout), p) for rollout, p in known[m.environment]])
        for m in methods
    ]


def full_text(rollout: Rollout) -> str:
    return to_text(rollout.prompt_ids + rollout.token_ids)


class Errors:
    """Of estimates of many exact numbers, each met many times: how much is bias, and how much is spread.

    The square of a mean error has its noise in it; the product of the means of two independent halves does not.
    """

    def __init__(self) -> None:
        self.sums: tuple[Counter[Hashable], Counter[Hashable]] = (Counter(), Counter())
        self.counts: tuple[Counter[Hashable], Counter[Hashable]] = (Counter(), Counter())
        self.squares = 0.0

    def add(self, half: int, number: Hashable, error: float) -> None:
        self.sums[half][number] += error  # pyright: ignore[reportArgumentType]
        self.counts[half][number] += 1
        self.squares += error * error

    def bias_and_std(self) -> tuple[float, float] | None:
        """Root mean squares over all that was met: the mean error of the same number, and the rest of the error."""
        (sums, more_sums), (counts, more_counts) = self.sums, self.counts
        both = counts.keys() & more_counts.keys()
        if not both:
            return None
        weights = {number: counts[number] + more_counts[number] for number in both}
        products = [weights[n] * (sums[n] / counts[n]) * (more_sums[n] / more_counts[n]) for n in both]
        bias2 = max(0.0, math.fsum(products) / sum(weights.values()))
        error2 = self.squares / (counts.total() + more_counts.total())
        return math.sqrt(bias2), math.sqrt(max(0.0, error2 - bias2))


@dataclass
class Tally:
    """What one method did, batch by batch."""

    gradients: list[np.ndarray] = field(default_factory=list)  # [N][S, A]
    num_tokens: int = 0
    values: Errors = field(default_factory=Errors)
    tokens: Errors = field(default_factory=Errors)
    segments: Errors = field(default_factory=Errors)

    def add(self, world: World, half: int, groups: Sequence[Group], credits: Sequence[Sequence[Credit]]) -> None:
        texts = [full_text(rollout) for group in groups for rollout in group]
        flat = [credit for in_group in credits for credit in in_group]
        for text, credit in zip(texts, flat, strict=True):
            self._add_errors(world.value, half, text, credit)
        weight = 1 / len(texts)
        responses = [(text, credit.advantages, weight) for text, credit in zip(texts, flat, strict=True)]
        self.gradients.append(policy_gradient(world, responses))
        self.num_tokens += sum(len(credit.advantages) for credit in flat)

    def _add_errors(self, exact: dict[str, float], half: int, text: str, credit: Credit) -> None:
        states = [text[: t + 1] for t in range(len(text))]
        for (before, after), advantage in zip(pairwise(states), credit.advantages, strict=True):
            self.tokens.add(half, after, advantage - (exact[after] - exact[before]))
        for j, (start, end) in enumerate(pairwise(credit.boundaries)):
            before, after = states[start], states[end]
            values = credit.values[j:] if credit.values else credit.token_values[start:] if credit.token_values else ()
            if values:
                self.values.add(half, before, values[0] - exact[before])
            if not credit.token_values:  # every token of the segment has the same advantage
                error = credit.advantages[start] - (exact[after] - exact[before])
                self.segments.add(half, (before, after), error)


def measure(num_batches: int, seed: int) -> dict[str, Any]:
    """All methods on the same `num_batches` iterations of three prompts; what goes into the JSON file."""
    if num_batches < 2:
        raise UserError(f"--batches must be at least 2, got {num_batches}")
    theta_SA = default_policy()
    world = make_world(theta_SA)
    methods = make_methods(world, theta_SA)
    true_SA = true_gradient(world)
    tallies, yardstick = sample(world, methods, num_batches, seed)
    rows = [
        summary(true_SA, expected_SA, tally, yardstick)
        for expected_SA, tally in zip(expected_gradients(world, methods), tallies, strict=True)
    ]
    costs = [row["noise"] * row["tokens_per_rollout"] for row in rows]
    return {
        "seed": seed,
        "num_batches": num_batches,
        "rollouts_per_batch": len(PROMPTS) * GROUP_SIZE,
        "values": {prompt: world.value[prompt] for prompt in PROMPTS},
        "gradient_norm": float(np.linalg.norm(true_SA)),
        "methods": [
            {"name": method.name, **row, "noise_at_equal_tokens": cost / costs[0]}
            for method, row, cost in zip(methods, rows, costs, strict=True)
        ],
    }


def sample(
    world: World, methods: Sequence[Method], num_batches: int, seed: int
) -> tuple[list[Tally], list[np.ndarray]]:  # [M], [N][S, A]
    """What every method made of the same rollouts; and the gradients of exact credit, the yardstick."""
    environments = list(dict.fromkeys(method.environment for method in methods))
    tallies = [Tally() for _ in methods]
    yardstick = []
    for n in track(range(num_batches), "sampling", transient=True, console=Console(stderr=True)):
        groups_of = {environment: sample_batch(environment, n, seed) for environment in environments}
        for method, tally in zip(methods, tallies, strict=True):
            groups, usage = groups_of[method.environment], method.environment.engine.usage
            num_before = usage["vine"]
            credits = method.credit(groups, seed=derive_seed(seed, n, method.name))
            tally.num_tokens += usage["vine"] - num_before
            tally.add(world, n % 2, groups, credits)
        yardstick.append(yardstick_gradient(world, groups_of[environments[0]]))
    return tallies, yardstick


def sample_batch(environment: Environment, n: int, seed: int) -> list[Group]:  # [P][G]
    problems = environment.task.sample(len(PROMPTS), seed=seed)
    return sample_groups(environment, problems, SAMPLING, seed=derive_seed(seed, n, "policy"))


def yardstick_gradient(world: World, groups: Sequence[Group]) -> np.ndarray:  # [S, A]
    """With the exact advantage of every token: right on average, and it shares the luck of these rollouts."""
    texts = [full_text(rollout) for group in groups for rollout in group]
    advantages = [differences([world.value[text[: t + 1]] for t in range(len(text))]) for text in texts]
    return policy_gradient(world, [(text, A, 1 / len(texts)) for text, A in zip(texts, advantages, strict=True)])


def summary(
    true_SA: np.ndarray, expected_SA: np.ndarray, tally: Tally, yardstick: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Biases are in lengths of the true gradient; variances in squares of it, and are those of one batch's gradient."""
    gradients_NSA = np.stack(tally.gradients)
    errors_NSA = gradients_NSA - np.stack(yardstick)  # paired: the luck of the rollouts is no error
    num_batches = len(gradients_NSA)
    length = np.linalg.norm(true_SA)
    signal = (expected_SA * true_SA).sum() / length  # how far it goes the right way
    squares_N = ((gradients_NSA - gradients_NSA.mean(axis=0)) ** 2).sum(axis=(1, 2)) * num_batches / (num_batches - 1)
    row: dict[str, Any] = {}
    for name, errors in (("value", tally.values), ("token", tally.tokens), ("segment", tally.segments)):
        row[f"{name}_bias"], row[f"{name}_std"] = errors.bias_and_std() or (None, None)
    return row | {
        "gradient_bias_exact": float(np.linalg.norm(expected_SA - true_SA) / length),
        "gradient_bias": float(np.linalg.norm(errors_NSA.mean(axis=0)) / length),
        "gradient_bias_se": float(np.sqrt(errors_NSA.var(axis=0, ddof=1).sum() / num_batches) / length),
        "cosine": float(signal / np.linalg.norm(expected_SA)),
        "variance": float(squares_N.mean() / length**2),
        "variance_se": float(squares_N.std(ddof=1) / math.sqrt(num_batches) / length**2),
        "noise": float(squares_N.mean() / signal**2),
        "tokens_per_rollout": tally.num_tokens / (num_batches * len(PROMPTS) * GROUP_SIZE),
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    credit = Table(title="Credit: bias and spread, root mean squares")
    gradient = Table(
        title="Policy gradient: {num_batches} batches of {rollouts_per_batch} rollouts, seed {seed}".format(**result)
    )
    for table, columns in (
        (credit, ("V: bias", "spread", "token A: bias", "spread", "segment A: bias", "spread")),
        (gradient, ("exact bias", "measured", "cosine", "variance", "tokens", "equal tokens")),
    ):
        table.add_column("estimator")
        for column in columns:
            table.add_column(column, justify="right")
    for row in result["methods"]:
        numbers = [row[f"{of}_{what}"] for of in ("value", "token", "segment") for what in ("bias", "std")]
        credit.add_row(row["name"], *("" if number is None else f"{number:.2f}" for number in numbers))
        gradient.add_row(
            row["name"],
            f"{row['gradient_bias_exact']:.3f}",
            f"{row['gradient_bias']:.2f} ± {row['gradient_bias_se']:.2f}",
            f"{row['cosine']:.3f}",
            f"{row['noise']:.2f}",
            f"{row['tokens_per_rollout']:.1f}",
            f"{row['noise_at_equal_tokens']:.2f}",
        )
    return [credit, gradient]


LEGEND = """\
V, A      against exact V at boundaries, A = Q - V of tokens, V(after) - V(before) of segments.
bias      of the gradient: length of its mean error, in lengths of the true gradient. "exact" is a
          sum over all responses; measured, an unbiased one shows about its standard error (±).
variance  of one batch's gradient, over its squared mean length along the true one.
tokens    sampled per rollout, vines included. "equal tokens": variance x tokens, RLOO = 1.
critic    exact: V itself; wrong: 0.2 above or below, fixed per state. Here neither costs tokens.
unmerged  every rollout has vines of its own; else equal states of siblings are estimated once.
silent    "=" has no text, as <eos> has none, and so joins the segment before it.
2 states  max_states_per_rollout = 2."""


def exact(num_batches: int, seed: int, json_file: Path | None) -> None:
    result = measure(num_batches, seed)
    if json_file:
        write_json(json_file, result)
    console = Console()
    for table in tables(result):
        console.print(table)
    console.print(LEGEND, markup=False, highlight=False)
