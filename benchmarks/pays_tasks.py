"""The embedded task's part of pays.py: policies of a tiny model, and the noise of its real gradient.

A policy is the quickstart's after SFT, or that of a task that differs in one thing. The measured cost of an estimator
is the trace of the covariance of minibatch gradients (vineppo/analysis/gradient_variance.py), times sampled tokens,
over RLOO's. Estimators that learn see another batch first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vineppo.analysis.gradient_variance import gradient, inner_products
from vineppo.analysis.measured import AnalysisConfig, draw_groups
from vineppo.analysis.pays import draw_pilots
from vineppo.analysis.pilot import with_alternatives
from vineppo.analysis.rates import UNKNOWN
from vineppo.analysis.subject import RunCheckpoint, Subject, open_subject
from vineppo.analysis.verdict import forecast_rows, make_case
from vineppo.cli.quickstart import SFT, TASK, VINEPPO
from vineppo.credit.common import CreditContext
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.tree import TreeConfig, TreeCredit
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.credit.vines import Vines, VinesConfig
from vineppo.machine import runtime
from vineppo.methods.run import run_recipe
from vineppo.methods.samples import to_samples
from vineppo.methods.sft import SFTRecipe
from vineppo.methods.train import TrainRecipe
from vineppo.protocols import CreditEstimator, LearningEstimator
from vineppo.runs.recipe import make_recipe
from vineppo.sample import Sample
from vineppo.types import Assigned, Group

Point = dict[str, Any]
NO_EVALUATION = {"evaluation": {"num_problems": 1, "num_samples": 1, "max_new_tokens": 4, "every": 0}}
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "8 to 12 steps": {},
    "2 to 4 steps": {"task": TASK | {"num_steps": [2, 4]}},
    "6 of 10 facts unreliable": {"task": TASK | {"slip_share": 0.6}},
    "a quarter of the SFT": {"sft": SFT["sft"] | {"num_problems": 1_600}},
}
CONFIG = AnalysisConfig(split="train", num_problems=96, vines=(1, 3), num_minibatches=24, seed=1_000)
"""Of the measured side; its problems and seeds are not the forecast's."""


def points(seeds: Sequence[int]) -> list[Point]:
    runtime.prepare()
    with TemporaryDirectory() as home:
        return [point for name in POLICIES for point in policy_points(name, seeds, Path(home) / name)]


def policy_points(name: str, seeds: Sequence[int], folder: Path) -> list[Point]:
    with open_subject(make_policy(name, folder)) as subject:
        measured = measure(subject)
        rows = [(seed, row) for seed in seeds for row in forecast(subject, seed)]
    return [
        {
            "where": name,
            "seed": seed,
            "estimator": row["estimator"],
            "forecast": row["cost"],
            "low": row["low"],
            "high": row["high"],
            **measured[row["estimator"]],
        }
        for seed, row in rows
        if row["estimator"] in measured
    ]


def make_policy(name: str, folder: Path) -> RunCheckpoint:
    """SFT, and the recipe that would train on from there."""
    changed = {**SFT, **NO_EVALUATION, **POLICIES[name]}
    policy = run_recipe(make_recipe({"name": "policy", **changed}, kind=SFTRecipe, source=name), folder)
    trained = {**VINEPPO, **NO_EVALUATION, "task": changed["task"], "model": {"name": str(policy)}}
    return RunCheckpoint(folder, make_recipe({"name": "policy", **trained}, kind=TrainRecipe, source=name), policy)


def forecast(subject: Subject, seed: int) -> list[Point]:
    config = AnalysisConfig(split="train", vines=CONFIG.vines, seed=seed)
    case = make_case(draw_pilots(subject, config), UNKNOWN, config.vines)
    return forecast_rows(case, seed=seed)


def measure(subject: Subject) -> dict[str, Point]:
    """The ratio of costs to RLOO's, with a standard error by the jackknife over minibatches."""
    first, groups = (
        draw_groups(subject, CONFIG.model_copy(update={"seed": CONFIG.seed + i, "num_problems": n}))
        for i, n in ((1, 16), (0, CONFIG.num_problems))
    )
    context = CreditContext(with_alternatives(subject.environment))
    costs = {name: costs_of(subject, estimator, first, groups) for name, estimator in estimators(context).items()}
    base_M = costs.pop("rloo")
    return {name: ratio(cost_M, base_M) for name, cost_M in costs.items()}


def estimators(context: CreditContext) -> dict[str, CreditEstimator]:
    return {
        "rloo": RLOO(RLOOConfig()),
        **{f"vineppo K={k}": VinePPO(VinePPOConfig(num_vines=k), context) for k in CONFIG.vines},
        "tree K=1": TreeCredit(TreeConfig(), context),
        "vines K=0": Vines(VinesConfig(num_vines=0), context),
        "vines K=2": Vines(VinesConfig(num_vines=2), context),
    }


def costs_of(
    subject: Subject, estimator: CreditEstimator, first: Sequence[Group], groups: Sequence[Group]
) -> np.ndarray:  # [M]
    """Of each minibatch left out in turn, the trace of the others' covariance times the tokens sampled."""
    if isinstance(estimator, LearningEstimator):
        assigned = estimator.assign(first, seed=1)
        estimator.update(to_samples(first, assigned.credits, assigned.extra))
    usage = subject.environment.engine.usage
    before = usage["vine"]
    assigned = estimator.assign(groups, seed=0)
    num_tokens = usage["vine"] - before + sum(len(r.token_ids) for group in groups for r in group)
    products_MM = inner_products([gradient_of(subject, part) for part in deal(groups, assigned)])
    num = len(products_MM)
    kept = [np.flatnonzero(np.arange(num) != m) for m in range(num)]
    return num_tokens * np.array([trace(products_MM[np.ix_(some, some)]) for some in kept])


def trace(products_MM: np.ndarray) -> float:
    num = len(products_MM)
    return (np.trace(products_MM) - products_MM.sum() / num) / (num - 1)


def deal(groups: Sequence[Group], assigned: Assigned) -> list[list[Sample]]:  # [M]
    """Minibatches of whole groups, with the extra rollouts that descend from theirs."""
    samples = to_samples(groups, assigned.credits, assigned.extra)
    num_rollouts, size = sum(map(len, groups)), sum(map(len, groups)) // CONFIG.num_minibatches
    parts = [samples[i : i + size] for i in range(0, num_rollouts, size)]
    for one, sample in zip(assigned.extra, samples[num_rollouts:], strict=True):
        parts[one.root // size].append(sample)
    return parts


def gradient_of(subject: Subject, samples: Sequence[Sample]) -> np.ndarray:
    """Of the sum over trained tokens of weight times advantage times log-prob."""
    num_actions = sum(sample.num_actions for sample in samples)
    return gradient(subject, [weighted(sample) for sample in samples]) * num_actions


def weighted(sample: Sample) -> Sample:
    if sample.weights is None:
        return sample
    products = tuple(w * a for w, a in zip(sample.weights, sample.advantages, strict=True))
    return replace(sample, advantages=products)


def ratio(cost_M: np.ndarray, base_M: np.ndarray) -> Point:
    ratios_M = cost_M / base_M
    num = len(ratios_M)
    return {
        "measured": float(ratios_M.mean()),
        "se": float(np.sqrt((num - 1) / num * ((ratios_M - ratios_M.mean()) ** 2).sum())),
    }
