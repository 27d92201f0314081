"""The training loop. Everything that differs between methods is behind `credit`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field, SerializeAsAny, model_validator

from vineppo.batch import split
from vineppo.config import Config, Named
from vineppo.credit import CREDIT
from vineppo.credit.grpo import GRPOConfig
from vineppo.credit.parts import Parts
from vineppo.credit.rloo import RLOOConfig
from vineppo.environment import Environment
from vineppo.learner.advantages import normalize_advantages
from vineppo.learner.policy_loss import policy_loss
from vineppo.methods.epochs import num_steps
from vineppo.rollouts import (
    SamplingConfig,
    rollout_metrics,
    sample_iteration,
    save_rollouts,
    token_metrics,
    verdict_metrics,
)
from vineppo.runs.metrics import MetricsLog
from vineppo.runs.recipe import SamplingRecipe
from vineppo.runs.session import OnStart, Session, due, machine
from vineppo.runs.shutdown import Shutdown, Stopped
from vineppo.seeding import derive_seed
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
                        log.add(learner.step(minibatch, policy_loss))  # one optimizer step
                    log.add(credit.update(minibatch))
            environment.engine.load_weights(learner.weights(), version=iteration + 1)

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


class TrainRecipe(SamplingRecipe):
    """For `vineppo train`."""

    credit: SerializeAsAny[Named]
    train: TrainConfig

    @property
    def num_rounds(self) -> int:
        return self.train.num_iterations

    @property
    def num_vines(self) -> int:
        return getattr(self.credit, "num_vines", 0)

    @model_validator(mode="after")
    def something_to_compare(self) -> TrainRecipe:
        credit = self.credit
        if not isinstance(credit, GRPOConfig | RLOOConfig):
            return self
        if self.sampling.group_size < 2:
            raise ValueError(
                f"sampling.group_size = {self.sampling.group_size} leaves {credit.name} nothing to compare a "
                "response with, so that all advantages are 0; give at least 2"
            )
        if self.train.advantage_norm == "minibatch" and self.train.minibatch_size == 1:
            raise ValueError(
                'train.advantage_norm = "minibatch" with minibatch_size = 1 whitens a response by itself, whose tokens '
                f'all have one advantage under {credit.name}, to 0; set advantage_norm = "iteration" or "off"'
            )
        return self


def run_train(recipe: TrainRecipe, session: Session, on_start: OnStart) -> None:
    """VinePPO, PPO, GRPO, RLOO: whatever `credit.name` says."""
    engine = session.make_engine()
    session.check_evaluation(engine)
    environment = session.make_environment(engine, recipe.sampling.params(), recipe.sampling.max_prompt_tokens)
    rollouts_per_iteration = recipe.sampling.prompts_per_iteration * recipe.sampling.group_size
    steps_per_iteration = num_steps(rollouts_per_iteration, recipe.train.minibatch_size, recipe.train.num_epochs)
    total_steps = recipe.train.num_iterations * steps_per_iteration
    learner = session.make_learner(
        session.load_initial_policy() if recipe.learner.kl_coef > 0 else None,
        sampling=recipe.sampling.params(),
        total_steps=total_steps,
    )
    parts = Parts(environment, session.load_initial_policy, total_steps, recipe.seed)
    credit = CREDIT[recipe.credit.name].make(recipe.credit, parts)  # type: ignore[attr-defined]
    if session.checkpoint:
        credit.load(session.checkpoint.folder)
        engine.load_weights(learner.weights(), version=session.completed)
    completed, last = session.completed, recipe.train.num_iterations
    on_start(last)

    def end_iteration(iteration: int) -> None:
        if due(recipe.evaluation.every, iteration, last):
            session.evaluate(engine, iteration, learner)
        session.log.write(iteration, machine())

    def finish_iteration(iteration: int, groups: list[Group], credits: list[list[Credit]]) -> None:
        nonlocal completed
        if due(recipe.train.save_rollouts_every, iteration, last):
            save_rollouts(
                session.rollouts_file(iteration), groups, credits, environment, num_vines=recipe.train.save_vines
            )
        if session.must_save(iteration, last):
            session.save(iteration, learner, pending=session.log.pending(), save_more=credit.save)
        end_iteration(iteration)
        completed = iteration

    if session.take_up_line():
        end_iteration(completed)
    run = Run(
        recipe.seed,
        environment,
        recipe.sampling,
        learner,
        credit,
        session.log,
        session.shutdown,
        finish_iteration,
    )
    try:
        train(recipe.train, run, first_iteration=session.completed)
    except Stopped:
        session.save(completed, learner, save_more=credit.save)
        raise
