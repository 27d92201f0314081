"""The training loop. Everything that differs between methods is behind `credit`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field

from vineppo.batch import split
from vineppo.config import Config
from vineppo.environment import Environment
from vineppo.losses import whiten
from vineppo.metrics import MetricsLog
from vineppo.rollouts import SamplingConfig, rollout_metrics, sample_iteration, token_metrics, verdict_metrics
from vineppo.seeding import derive_seed
from vineppo.shutdown import Shutdown
from vineppo.types import Credit, CreditEstimator, Group, Learner, Sample


class TrainConfig(Config):
    num_iterations: int = Field(ge=1)
    num_epochs: int = Field(default=2, ge=1)
    """Passes over an iteration's rollouts."""
    minibatch_size: int = Field(default=64, ge=1)
    """Rollouts per optimizer step."""
    advantage_norm: Literal["iteration", "minibatch", "off"] = "iteration"
    """Tokens over which advantages are whitened. The reference implementation whitens every microbatch alone."""
    save_rollouts_every: int = Field(default=1, ge=0)
    """Iterations between files under rollouts/; 0 writes only the last."""
    save_vines: int = Field(default=3, ge=0)
    """Vines of every state that those files hold."""


@dataclass(frozen=True)
class Run:
    """The parts of a training run, wired by the command line."""

    seed: int
    environment: Environment
    sampling: SamplingConfig
    learner: Learner
    credit: CreditEstimator
    log: MetricsLog
    shutdown: Shutdown
    finish_iteration: Callable[[int, list[Group], list[list[Credit]]], None]
    """Called with the number of completed iterations: evaluates, checkpoints and keeps rollouts when due."""


def train(cfg: TrainConfig, run: Run, *, first_iteration: int = 0) -> None:
    environment, learner, credit, log = run.environment, run.learner, run.credit, run.log
    for iteration in range(first_iteration, cfg.num_iterations):
        seed = partial(derive_seed, run.seed, iteration)
        usage_before, verdicts_before = Counter(environment.engine.usage), Counter(environment.grader.verdicts)

        with run.shutdown.interruptible():  # nothing has been learnt yet: a stop may throw this away
            with log.phase("sample"):
                sampled = sample_iteration(environment, run.sampling, seed=seed)
            groups = sampled.groups  # [P][G]
            with log.phase("credit"):
                credits = credit.assign(groups, seed=seed("credit"))  # [P][G]  all that differs between methods
            with log.phase("score"):
                samples = learner.score(to_samples(groups, credits))  # [P*G] old and reference log-probs
        if cfg.advantage_norm == "iteration":
            samples = normalize_advantages(samples)

        with log.phase("update"):
            for epoch in range(cfg.num_epochs):
                for minibatch in split(samples, cfg.minibatch_size, seed=seed("shuffle", epoch)):
                    if cfg.advantage_norm == "minibatch":
                        minibatch = normalize_advantages(minibatch)
                    if credit.ready:
                        log.add(learner.step(minibatch))  # clipped surrogate + KL, one optimizer step
                    log.add(credit.update(minibatch))
            environment.engine.load_weights(learner.state_dict(), version=iteration + 1)

        log.add(rollout_metrics(sampled))
        log.add(credit.metrics() | learner.mismatch(samples) | learner.memory())
        log.add(token_metrics(environment.engine.usage - usage_before))
        log.add(verdict_metrics(environment.grader.verdicts - verdicts_before))
        run.finish_iteration(iteration + 1, groups, credits)
        if iteration + 1 < cfg.num_iterations:
            run.shutdown.check()


def to_samples(groups: Sequence[Group], credits: Sequence[Sequence[Credit]]) -> list[Sample]:  # [P*G]
    return [
        Sample(
            prompt_ids=rollout.prompt_ids,
            response_ids=rollout.token_ids,
            advantages=credit.advantages,
            sampling_logprobs=rollout.completion.logprobs,
            token_values=credit.token_values,
            returns=credit.returns,
        )
        for group, group_credits in zip(groups, credits, strict=True)
        for rollout, credit in zip(group, group_credits, strict=True)
    ]


def normalize_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """Whitens over all response tokens of `samples`: mean 0, unbiased variance 1 (+ 1e-8), as the paper's code does."""
    lengths = [len(sample.advantages) for sample in samples]
    advantages_N = torch.tensor([a for sample in samples for a in sample.advantages], dtype=torch.float64)
    columns = whiten(advantages_N).split(lengths)
    return [replace(sample, advantages=tuple(column.tolist())) for sample, column in zip(samples, columns, strict=True)]
