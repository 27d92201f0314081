"""`vineppo exact`: every credit estimator against the truth, in worlds where it is known.

The estimators are the ones that train, unchanged, and so is what samples their rollouts. Nothing is whitened or
clipped. A batch's policy gradient is the sum over trained tokens, those of extra rollouts included, of
weight A_t grad log pi(y_t | s_t), over the number of rollouts in the groups. What it is on average is known by a sum
over all responses, where a row has a formula for its credit, and measured besides.
Shapes as in world.py: S rows of the policy's table, A actions; N batches, M methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from vineppo.credit.common import CreditContext
from vineppo.environment import CUT_OFF, Environment, GradedCompletion, State
from vineppo.exact.known import exact_advantages
from vineppo.exact.methods import GROUP_SIZE, Row, rows_of
from vineppo.exact.play import Cuts, make_environment
from vineppo.exact.world import END, World
from vineppo.methods.samples import to_samples
from vineppo.protocols import CreditEstimator, LearningEstimator
from vineppo.rollouts import SamplingConfig, make_rollout, sample_groups
from vineppo.seeding import derive_seed
from vineppo.types import Assigned, Credit, Group, Problem, Rollout

COSTS = ("sampled", "trained", "computed")


@dataclass(frozen=True, eq=False)
class Method:
    """A row in a world, with the estimator that runs there. Methods that sample alike share their environment."""

    row: Row
    world: World
    environment: Environment

    @cached_property
    def estimator(self) -> CreditEstimator:
        return self.row.make(self.world, CreditContext(self.environment))

    @cached_property
    def expected_gradient(self) -> np.ndarray | None:  # [S, A]
        """The mean of the policy gradient: a sum over all responses."""
        if self.row.expected is None:
            return None
        expected = self.row.expected(self.world, self.estimator)
        return self.world.policy_gradient(
            [
                (full_text(self.world, rollout), expected(rollout), p)
                for rollout, p in all_rollouts(self.world, self.environment)
            ]
        )


def make_methods(world: World, rows: Sequence[Row] | None = None) -> list[Method]:
    environments: dict[tuple[Cuts, int], Environment] = {}
    methods = []
    for row in rows_of(world) if rows is None else rows:
        key = (row.cuts, row.num_alternatives)
        if key not in environments:
            environments[key] = make_environment(world, cuts=row.cuts, num_alternatives=row.num_alternatives)
        methods.append(Method(row, world, environments[key]))
    return methods


@lru_cache(maxsize=4)
def all_rollouts(world: World, environment: Environment) -> list[tuple[Rollout, float]]:
    """Every response there is as a rollout, and its probability; those of all prompts add up to 1."""
    return [(known_rollout(world, environment, text), p) for text, p in world.responses]


def known_rollout(world: World, environment: Environment, text: str) -> Rollout:
    """The rollout that the program would make of this response, without sampling it."""
    prompt_ids, token_ids = (tuple(environment.tokenizer.encode(part)) for part in (text[0], text[1:]))
    completion = environment.engine.completion(text, environment.params)  # type: ignore[attr-defined]
    problem, response = Problem(f"{world.name}/{text[0]}", text[0], "right"), environment.text(token_ids)
    grade = environment.task.grade(problem, response) if text[-1] == END else CUT_OFF
    graded = GradedCompletion(completion, response, grade)
    return make_rollout(environment, State(problem, prompt_ids), graded, world.budget)


def full_text(world: World, rollout: Rollout) -> str:
    return world.text(rollout.prompt_ids + rollout.token_ids)


class Errors:
    """Of estimates of many exact numbers, each met many times: how much is bias, and how much is spread.

    The square of a mean error has its noise in it; the product of the means of two independent halves does not.
    """

    def __init__(self) -> None:
        self.numbers: tuple[list[int], list[int]] = ([], [])
        self.errors: tuple[list[float], list[float]] = ([], [])

    def add(self, half: int, number: int, error: float) -> None:
        """`number` says which of the exact numbers it is."""
        self.numbers[half].append(number)
        self.errors[half].append(error)

    def bias_and_std(self) -> tuple[float, float] | None:
        """Root mean squares over all that was met: the mean error of the same number, and the rest of the error."""
        split = len(self.numbers[0])
        _, dense = np.unique(np.concatenate(self.numbers).astype(np.int64), return_inverse=True)
        halves, size = (dense[:split], dense[split:]), int(dense.max(initial=0)) + 1
        counts_HN = [np.bincount(half, minlength=size) for half in halves]
        both = (counts_HN[0] > 0) & (counts_HN[1] > 0)
        if not both.any():
            return None
        sums_HN = [np.bincount(*pair, minlength=size) for pair in zip(halves, self.errors, strict=True)]
        products_N = np.prod(
            [sums[both] / counts[both] for sums, counts in zip(sums_HN, counts_HN, strict=True)], axis=0
        )
        bias2 = max(0.0, float(np.average(products_N, weights=np.add(*counts_HN)[both])))
        error2 = float(np.mean(np.concatenate(self.errors) ** 2))
        return math.sqrt(bias2), math.sqrt(max(0.0, error2 - bias2))


@dataclass
class Tally:
    """What one method did, batch by batch."""

    world: World
    gradients: list[np.ndarray] = field(default_factory=list)  # [N][S, A]
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*COSTS, "warmup"), 0))
    values: Errors = field(default_factory=Errors)
    token_advantages: Errors = field(default_factory=Errors)
    segment_advantages: Errors = field(default_factory=Errors)

    def add(self, half: int, groups: Sequence[Group], assigned: Assigned) -> None:
        pairs = [
            pair
            for group, credits in zip(groups, assigned.credits, strict=True)
            for pair in zip(group, credits, strict=True)
        ]
        for rollout, credit in pairs:
            self._add_errors(half, full_text(self.world, rollout), credit)
        responses = [(rollout, credit, 1.0) for rollout, credit in pairs]
        responses += [(extra.rollout, extra.credit, extra.weight) for extra in assigned.extra]
        self.gradients.append(
            self.world.policy_gradient(
                [
                    (full_text(self.world, rollout), trained(rollout, credit), weight / len(pairs))
                    for rollout, credit, weight in responses
                ]
            )
        )

    def _add_errors(self, half: int, text: str, credit: Credit) -> None:
        trace = self.world.trace(text)
        for t, advantage in enumerate(credit.advantages):
            if not trace.certain[t]:
                error = advantage - (trace.values[t + 1] - trace.values[t])
                self.token_advantages.add(half, trace.state_ids[t + 1], error)
        for j, (start, end) in enumerate(pairwise(credit.boundaries)):
            value = None
            if credit.values:
                value = credit.values[j]
            elif credit.token_values:
                value = credit.token_values[start] + trace.earned[start]
            if value is not None:
                self.values.add(half, trace.state_ids[start], value - trace.values[start])
            if not credit.token_values:  # every token of the segment has the same advantage
                error = credit.advantages[start] - (trace.values[end] - trace.values[start])
                self.segment_advantages.add(half, trace.state_ids[start] << 32 | trace.state_ids[end], error)


def trained(rollout: Rollout, credit: Credit) -> list[float]:
    """The advantages of all tokens after the world's prompt, [L], as a loss sees them: 0 where it sees none.

    A vine may have its root's prefix in its prompt.
    """
    mask = rollout.action_mask or (True,) * len(rollout.token_ids)
    advantages = [a if is_action else 0.0 for a, is_action in zip(credit.weighted_advantages, mask, strict=True)]
    return [0.0] * (len(rollout.prompt_ids) - 1) + advantages


def run_method(method: Method, tally: Tally, n: int, groups: Sequence[Group], *, seed: int) -> None:
    """One batch: credit, then learning where the estimator learns. Before batch 0 it only warms up."""
    engine: Any = method.environment.engine
    kept, usage, computed = engine.kept, engine.usage.total(), engine.computed.total()
    assigned = method.estimator.assign(groups, seed=derive_seed(seed, n, method.row.name))
    engine.kept = kept  # what this method kept is not there for the next
    samples = to_samples(groups, assigned.credits, assigned.extra)
    spent = {
        "sampled": engine.usage.total() - usage,
        "computed": engine.computed.total() - computed,
        "trained": sum(sample.num_actions for sample in samples),
    }
    if n >= 0:
        assert assigned.trains_policy, f"{method.row.name} still warms up; raise num_warmup"
        tally.add(n % 2, groups, assigned)
        for cost, num_tokens in spent.items():
            tally.tokens[cost] += num_tokens
    else:
        tally.tokens["warmup"] += spent["sampled"] + sum(len(r.token_ids) for group in groups for r in group)
    if isinstance(method.estimator, LearningEstimator):
        method.estimator.update(samples)


def sample_batch(environment: Environment, world: World, n: int, seed: int) -> tuple[list[Group], dict[str, int]]:
    """The groups [P][G], and what they cost. Forgets what was kept before, as after an optimizer step."""
    engine: Any = environment.engine
    engine.load_weights({"probs": world.probs_SA}, version=0)
    usage, computed = engine.usage.total(), engine.computed.total()
    sampling = SamplingConfig(
        prompts_per_iteration=len(world.prompts), group_size=GROUP_SIZE, max_new_tokens=world.budget
    )
    problems = environment.task.sample(len(world.prompts), seed=seed)
    groups = sample_groups(environment, problems, sampling, seed=derive_seed(seed, n, "policy"))
    return groups, {"sampled": engine.usage.total() - usage, "computed": engine.computed.total() - computed}


def run(
    world: World, methods: Sequence[Method], num_batches: int, seed: int
) -> tuple[list[Tally], list[np.ndarray]]:  # [M], [N][S, A]
    """What every method made of the same rollouts; and the gradients of exact credit, the yardstick."""
    tallies = [Tally(world) for _ in methods]
    yardstick = []
    for n in range(-max(method.row.num_warmup for method in methods), num_batches):
        running = [pair for pair in zip(methods, tallies, strict=True) if n >= -pair[0].row.num_warmup]
        batches = {
            environment: sample_batch(environment, world, n, seed)
            for environment in dict.fromkeys(method.environment for method, _ in running)
        }
        for method, tally in running:
            groups, spent = batches[method.environment]
            run_method(method, tally, n, groups, seed=seed)
            if n >= 0:
                for cost, num_tokens in spent.items():
                    tally.tokens[cost] += num_tokens
        if n >= 0:
            yardstick.append(yardstick_gradient(world, batches[methods[0].environment][0]))
    return tallies, yardstick


def yardstick_gradient(world: World, groups: Sequence[Group]) -> np.ndarray:  # [S, A]
    """With the exact advantage of every token: right on average, and it shares the luck of these rollouts."""
    texts = [full_text(world, rollout) for group in groups for rollout in group]
    return world.policy_gradient([(text, exact_advantages(world, text), 1 / len(texts)) for text in texts])


def measure_world(world: World, num_batches: int, seed: int, rows: Sequence[Row] | None = None) -> dict[str, Any]:
    """All rows of one world, or these, on the same batches; what goes into the JSON file."""
    methods = make_methods(world, rows)
    tallies, yardstick = run(world, methods, num_batches, seed)
    baseline = Summary(methods[0], tallies[0], yardstick)
    summaries = [Summary(method, tally, yardstick) for method, tally in zip(methods, tallies, strict=True)]
    return {
        "name": world.name,
        "num_batches": num_batches,
        "rollouts_per_batch": len(world.prompts) * GROUP_SIZE,
        "values": {prompt: world.value(prompt) for prompt in world.prompts},
        "gradient_norm": float(np.linalg.norm(world.true_gradient)),
        "rows": [
            summary.numbers() | {f"variance_at_equal_{cost}": summary.against(baseline, cost) for cost in COSTS}
            for summary in summaries
        ],
    }


class Summary:
    """Biases are in lengths of the true gradient; variances are those of one batch's gradient, in squares of its mean
    length along the true one."""

    def __init__(self, method: Method, tally: Tally, yardstick: Sequence[np.ndarray]):
        self.method, self.tally = method, tally
        gradients_NSA, true_SA = np.stack(tally.gradients), method.world.true_gradient
        self.num_batches = len(gradients_NSA)
        self.length = float(np.linalg.norm(true_SA))
        self.errors_NSA = (
            gradients_NSA - np.stack(yardstick)
        ) / self.length  # paired: the luck of rollouts is no error
        self.expected_SA = method.expected_gradient
        mean_SA = true_SA + self.errors_NSA.mean(axis=0) * self.length if self.expected_SA is None else self.expected_SA
        self.signal = float((mean_SA * true_SA).sum() / self.length)  # how far it goes the right way
        self.cosine = self.signal / float(np.linalg.norm(mean_SA))
        self.variance_N = ((gradients_NSA - gradients_NSA.mean(axis=0)) ** 2).sum(axis=(1, 2)) / self.signal**2
        self.variance_N *= self.num_batches / (self.num_batches - 1)

    def numbers(self) -> dict[str, Any]:
        tally, rollouts = self.tally, self.num_batches * len(self.method.world.prompts) * GROUP_SIZE
        found: dict[str, Any] = {"name": self.method.row.name}
        for name in ("values", "token_advantages", "segment_advantages"):
            found[f"{name}_bias"], found[f"{name}_std"] = getattr(tally, name).bias_and_std() or (None, None)
        exact = None
        if self.expected_SA is not None:
            exact = float(np.linalg.norm(self.expected_SA - self.method.world.true_gradient) / self.length)
        return found | {
            "bias_exact": exact,
            "bias": float(np.linalg.norm(self.errors_NSA.mean(axis=0))),
            "bias_se": float(np.sqrt(self.errors_NSA.var(axis=0, ddof=1).sum() / self.num_batches)),
            "cosine": self.cosine,
            "variance": float(self.variance_N.mean()),
            "variance_se": float(self.variance_N.std(ddof=1) / math.sqrt(self.num_batches)),
            **{f"tokens_{cost}": tally.tokens[cost] / rollouts for cost in COSTS},
            "warmup_tokens": tally.tokens["warmup"],
        }

    def against(self, baseline: Summary, cost: str) -> dict[str, float]:
        """Variance times tokens, over the baseline's, with the standard error that the batches' squares give it."""
        mean, of_baseline = self.variance_N.mean(), baseline.variance_N.mean()
        ratio = mean * self.tally.tokens[cost] / (of_baseline * baseline.tally.tokens[cost])
        relative_N = self.variance_N / mean - baseline.variance_N / of_baseline
        return {"ratio": float(ratio), "se": float(ratio * relative_N.std(ddof=1) / math.sqrt(self.num_batches))}
