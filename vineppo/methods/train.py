"""VinePPO, PPO, GRPO, RLOO: the training loop. Everything that differs between these methods is behind `credit`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from vineppo.config import Config, Named
from vineppo.credit.common import CreditContext, assign_credit, update_estimator
from vineppo.environment import Environment
from vineppo.machine.limits import peak_memory_mb
from vineppo.methods.epochs import minibatches, num_steps
from vineppo.methods.samples import extra_cost, to_samples, with_descendants
from vineppo.protocols import CreditEstimator, Learner, LearningEstimator
from vineppo.rollout_files import save_rollouts
from vineppo.rollouts import (
    Sampled,
    check_policy_version,
    rollout_metrics,
    sample_iteration,
)
from vineppo.runs.checkpoint import is_due
from vineppo.runs.recipe import SamplingRecipe, make_part
from vineppo.seeding import derive_seed
from vineppo.types import Assigned

if TYPE_CHECKING:
    from vineppo.runs.session import Session


class TrainConfig(Config):
    num_iterations: int = Field(ge=1)
    num_epochs: int = Field(default=2, ge=1)
    """Passes over an iteration's rollouts."""
    minibatch_size: int = Field(default=64, ge=1)
    """Rollouts per optimizer step."""
    advantage_norm: Literal["iteration", "minibatch", "scale", "off"] = "iteration"
    """Tokens over which advantages are whitened: the iteration's or a minibatch's (the reference implementation whitens
    every microbatch alone). Or "scale": divided by their root mean square over the iteration, no mean taken off."""
    save_rollouts_every: int = Field(default=1, ge=0)
    """Iterations between files under rollouts/; 0 writes only the last."""
    save_vines: int = Field(default=3, ge=0)
    """Vines of every state that those files hold."""


class TrainRecipe(SamplingRecipe):
    """For `vineppo train`."""

    command, length = "train", "train.num_iterations"

    credit: SerializeAsAny[Named]
    train: TrainConfig

    @property
    def num_rounds(self) -> int:
        return self.train.num_iterations

    @property
    def num_vines(self) -> int:
        vines = getattr(self.credit, "num_vines", 0)
        return vines if isinstance(vines, int) else max(vines, default=0)

    @model_validator(mode="after")
    def weights_stay_weights(self) -> TrainRecipe:
        """Of an estimator whose tokens count differently, so that they add up to the policy gradient."""
        if not getattr(self.credit, "weighs_tokens", False):
            return self
        if self.train.advantage_norm in ("iteration", "minibatch"):
            raise ValueError(
                f'train.advantage_norm = "{self.train.advantage_norm}" takes a mean off advantages of tokens that '
                f'{self.credit.name} weighs differently, which biases the gradient; set it to "scale" or "off"'
            )
        if self.learner.loss_aggregation == "sequence":
            raise ValueError(
                'learner.loss_aggregation = "sequence" divides the tokens of a vine by their number, and not by the '
                f'length of the response, which undoes the weights of {self.credit.name}; set it to "token" or '
                '"constant"'
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def alternatives_that_credit_needs(cls, tree: Any) -> Any:
        """Where the recipe says nothing of `sampling.num_alternatives`, an estimator may."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("sampling"), Mapping):
            return tree
        needed = getattr(tree.get("credit"), "num_alternatives", 0)
        return {**tree, "sampling": {"num_alternatives": needed, **tree["sampling"]}} if needed else tree

    @model_validator(mode="after")
    def something_to_compare(self) -> TrainRecipe:
        credit = self.credit
        if not getattr(credit, "compares_group", False):
            return self
        if self.sampling.group_size < 2:
            raise ValueError(
                f"sampling.group_size = {self.sampling.group_size} leaves {credit.name} nothing to compare a "
                "response with; give at least 2"
            )
        if self.train.advantage_norm == "minibatch" and self.train.minibatch_size == 1:
            raise ValueError(
                'train.advantage_norm = "minibatch" with minibatch_size = 1 whitens a response by itself, which takes '
                f'off what {credit.name} found by comparing it with others; set advantage_norm = "iteration" or "off"'
            )
        return self


def run_train(recipe: TrainRecipe, session: Session) -> None:
    """Makes the parts, from the checkpoint where there is one, and trains."""
    setup, sampling = session.setup, recipe.sampling
    engine = setup.make_engine()
    session.check_evaluations(engine)
    environment = setup.make_environment(engine, sampling)
    num_rollouts = sampling.prompts_per_iteration * sampling.group_size
    total_steps = recipe.train.num_iterations * num_steps(
        num_rollouts, recipe.train.minibatch_size, recipe.train.num_epochs
    )
    reference = setup.load_initial_policy() if recipe.learner.kl_coef > 0 else None
    learner = session.make_learner(reference, sampling=sampling.params(), total_steps=total_steps)
    context = CreditContext(
        environment, setup.load_initial_policy, setup.policy, total_steps, recipe.seed, recipe.device
    )
    credit: CreditEstimator = make_part("credit", recipe.credit, context)
    if session.checkpoint:
        if isinstance(credit, LearningEstimator):
            credit.load(session.checkpoint.folder)
        engine.load_weights(learner.weights(), version=session.completed)
    train(recipe, session, environment, learner, credit)


def train(
    recipe: TrainRecipe, session: Session, environment: Environment, learner: Learner, credit: CreditEstimator
) -> None:
    """THE loop: an iteration is learnt, saved, evaluated and written down, one after the other."""
    cfg, log, last = recipe.train, session.log, recipe.train.num_iterations
    save_more = {"save_more": credit.save} if isinstance(credit, LearningEstimator) else {}
    save = partial(session.save, learner=learner, **save_more)
    with session.saving_when_stopped(save):
        for iteration in session.iterations(last):
            done = iteration + 1
            if not session.take_up_owed(iteration):
                with environment.counting() as spent:
                    sampled, assigned = learn(iteration, recipe, session, environment, learner, credit)
                log.add(spent.metrics())
                if is_due(cfg.save_rollouts_every, done, last):
                    path = session.rollouts_file(done)
                    save_rollouts(path, sampled.groups, assigned.credits, environment, num_vines=cfg.save_vines)
                if session.must_save(done, last):
                    save(done, pending=log.pending())
            if is_due(recipe.evaluation.every, done, last):
                session.evaluate(environment.engine, done, learner)
            log.write(done, {"memory/peak_mb": peak_memory_mb()})
            if done < last:
                session.shutdown.check()


def learn(
    iteration: int,
    recipe: TrainRecipe,
    session: Session,
    environment: Environment,
    learner: Learner,
    credit: CreditEstimator,
) -> tuple[Sampled, Assigned]:
    """One iteration: sample, credit, score, and then optimizer steps on what was sampled."""
    from vineppo.learner.advantages import normalize_advantages, scale_advantages
    from vineppo.learner.policy_loss import policy_loss

    cfg, log, seed = recipe.train, session.log, partial(derive_seed, recipe.seed, iteration)
    learning = credit if isinstance(credit, LearningEstimator) else None
    with session.shutdown.interruptible():  # nothing has been learnt yet: a stop may throw this away
        with log.phase("sample"):
            sampled = sample_iteration(environment, recipe.sampling, seed=seed)
            check_policy_version(sampled.groups, iteration)
        with log.phase("credit"):
            assigned = assign_credit(credit, sampled.groups, seed=seed("credit"))  # all that differs between methods
        with log.phase("score"):
            samples = learner.score(to_samples(sampled.groups, assigned.credits, assigned.extra))
    normalize = {"iteration": normalize_advantages, "scale": scale_advantages}.get(cfg.advantage_norm, list)
    families = with_descendants(normalize(samples), assigned.extra)

    with log.phase("update"):
        order = minibatches(families, cfg.minibatch_size, cfg.num_epochs, seed=partial(seed, "shuffle"))
        for minibatch in (list(chain.from_iterable(chosen)) for _, chosen in order):
            if cfg.advantage_norm == "minibatch":
                minibatch = normalize_advantages(minibatch)
            if assigned.trains_policy:
                log.add(learner.step(minibatch, policy_loss))  # clipped surrogate + KL, one optimizer step
            if learning:
                log.add(update_estimator(learning, minibatch))
        environment.engine.load_weights(learner.weights(), version=iteration + 1)
    log.add(rollout_metrics(sampled))
    memory = learning.memory() if learning else {}
    log.add({**assigned.metrics, **memory, **extra_cost(samples), **learner.mismatch(samples), **learner.memory()})
    return sampled, assigned
