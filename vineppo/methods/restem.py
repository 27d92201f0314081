"""RestEM: sample, keep what is correct, refit the initial policy to it, select on validation problems, repeat.

Singh et al. 2024, "Beyond Human Data" (ReST-EM), as the paper's baseline has it. Every refit starts again from the
policy that training started from, with a fresh optimizer; only the sampling policy moves on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from vineppo.config import Config
from vineppo.environment import Environment
from vineppo.evaluate import EvaluationConfig, evaluate
from vineppo.machine.limits import peak_memory_mb
from vineppo.methods.epochs import minibatches, num_steps
from vineppo.methods.sft import nll_loss
from vineppo.rollouts import check_policy_version, rollout_metrics, sample_iteration
from vineppo.runs.checkpoint import PROGRESS, Checkpoint, is_due
from vineppo.runs.recipe import SamplingRecipe
from vineppo.runs.shutdown import Stopped
from vineppo.sample import Sample, make_sample
from vineppo.seeding import derive_seed
from vineppo.types import Group, UserError

if TYPE_CHECKING:
    from vineppo.learner.policy import PolicyLearner
    from vineppo.runs.session import Session


class RestEMConfig(Config):
    num_iterations: int = Field(default=10, ge=1)
    max_responses_per_problem: int = Field(default=10, ge=1)
    """Correct responses to learn from, distinct ones."""
    reward_threshold: float = Field(default=1.0, gt=0, le=1)
    """Reward from which a response is correct."""
    num_epochs: int = Field(default=8, ge=1)
    minibatch_size: int = Field(default=64, ge=1)
    candidates_every: int = Field(default=500, ge=1)
    """Optimizer steps between candidates; the initial policy and the end of the refit are candidates too."""
    select: Literal["best", "first_dip"] = "best"
    """The candidate with the best validation accuracy; or, as the reference does, the last one before accuracy first
    fails to rise."""
    stop_without_gain: bool = False
    """End when an iteration's selected accuracy does not exceed the one before."""
    validation: EvaluationConfig = EvaluationConfig(split="validation")


class RestEMRecipe(SamplingRecipe):
    """For `vineppo train`, with a [restem] section."""

    command, title, length = "train", "RestEM", "restem.num_iterations"
    schedule_spans_run = False  # every refit has one of its own

    restem: RestEMConfig

    @property
    def num_rounds(self) -> int:
        return self.restem.num_iterations

    @property
    def evaluations(self) -> dict[str, EvaluationConfig]:
        return {**super().evaluations, "restem.validation": self.restem.validation}


@dataclass(frozen=True)
class Progress:
    """What a run needs besides the policy in order to go on."""

    iteration: int = 0  # completed
    accuracy: float | None = None  # of the policy, on validation problems
    initial_accuracy: float | None = None  # of the policy that training started from
    no_gain: bool = False  # the last iteration's accuracy does not exceed the one before

    def is_finished(self, cfg: RestEMConfig) -> bool:
        return self.iteration >= cfg.num_iterations or (cfg.stop_without_gain and self.no_gain)


@dataclass(frozen=True)
class Candidate:
    step: int  # of the refit; 0 is the initial policy
    accuracy: float
    weights: dict[str, Any]


@dataclass(frozen=True)
class Refits:
    """What every refit starts from and is judged by."""

    recipe: RestEMRecipe
    session: Session
    reference: Any  # the policy that training started from
    validation: Environment

    def make_learner(self, total_steps: int) -> PolicyLearner:
        """Of the policy, with a fresh optimizer."""
        sampling = self.recipe.sampling.params()
        return self.session.setup.make_learner(self.reference, sampling=sampling, total_steps=total_steps)

    def candidates(self, learner: PolicyLearner, examples: Sequence[Sample], *, iteration: int) -> Iterator[Candidate]:
        """Maximum likelihood on `examples`, from the weights the policy has. No examples, no candidates."""
        cfg, policy = self.recipe.restem, self.session.setup.policy
        last = num_steps(len(examples), cfg.minibatch_size, cfg.num_epochs)
        shuffle = partial(derive_seed, self.recipe.seed, iteration, "refit")
        for step, minibatch in minibatches(examples, cfg.minibatch_size, cfg.num_epochs, seed=shuffle):
            with self.session.log.phase("update"):
                self.session.log.add(learner.step(minibatch, nll_loss))
            if step + 1 == last or (step + 1) % cfg.candidates_every == 0:
                weights = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
                yield Candidate(step + 1, self.validate(version=iteration), weights)

    def validate(self, *, version: int) -> float:
        """The policy's accuracy on validation problems."""
        cfg, seed = self.recipe.restem.validation, derive_seed(self.recipe.seed, "validation")
        with self.session.log.phase("select"):
            self.validation.engine.load_weights(self.session.setup.policy.state_dict(), version=version)
            return evaluate(self.validation, cfg, seed=seed, purpose="validation").scores["pass@1"].mean


def run_restem(recipe: RestEMRecipe, session: Session) -> None:
    setup = session.setup
    engine = setup.make_engine()
    session.check_evaluations(engine)
    if session.checkpoint:
        engine.load_weights(setup.policy.state_dict(), version=session.completed)
    environment = setup.make_environment(engine, recipe.sampling)
    validation = setup.make_environment(engine, recipe.restem.validation)
    restem(recipe, session, environment, Refits(recipe, session, setup.load_initial_policy(), validation))


def restem(recipe: RestEMRecipe, session: Session, environment: Environment, refits: Refits) -> None:
    """An iteration is only kept when it is complete: a stop inside of one throws it away."""
    cfg, log, last = recipe.restem, session.log, recipe.restem.num_iterations
    progress, weights = load_progress(session.checkpoint), None
    try:
        for iteration in session.iterations(last):
            if session.take_up_owed(iteration):
                learner = refits.make_learner(1)
            elif progress.is_finished(cfg):
                break
            else:
                with environment.counting() as spent:
                    progress, learner, weights = improve(iteration, progress, environment, refits)
                log.add(spent.metrics())
                if progress.is_finished(cfg) or session.must_save(iteration + 1, last):
                    session.save(learner=None, pending=log.pending(), **asdict(progress))
            if progress.is_finished(cfg) or is_due(recipe.evaluation.every, iteration + 1, last):
                session.evaluate(environment.engine, iteration + 1, learner)
            log.write(iteration + 1, {"memory/peak_mb": peak_memory_mb()})
    except Stopped:
        if weights is not None:  # the refit that was under way is lost
            session.setup.policy.load_state_dict(weights)
            session.save(learner=None, **asdict(progress))
        raise


def improve(
    iteration: int, progress: Progress, environment: Environment, refits: Refits
) -> tuple[Progress, PolicyLearner, dict[str, Any]]:
    """One iteration; the policy and the engine have its weights at the end."""
    session, recipe = refits.session, refits.recipe
    cfg, log, policy = recipe.restem, session.log, session.setup.policy
    with session.shutdown.interruptible():
        with log.phase("sample"):
            sampled = sample_iteration(environment, recipe.sampling, seed=partial(derive_seed, recipe.seed, iteration))
            check_policy_version(sampled.groups, iteration)
        examples = keep_correct(sampled.groups, cfg)
        learner = refits.make_learner(num_steps(len(examples), cfg.minibatch_size, cfg.num_epochs))
        initial_weights = refits.reference.state_dict()
        policy.load_state_dict(initial_weights)
        initial_accuracy = progress.initial_accuracy
        if initial_accuracy is None:
            initial_accuracy = refits.validate(version=iteration)
        initial = Candidate(0, initial_accuracy, initial_weights)
        chosen = select(chain([initial], refits.candidates(learner, examples, iteration=iteration)), cfg.select)
    policy.load_state_dict(chosen.weights)
    environment.engine.load_weights(chosen.weights, version=iteration + 1)
    log.add({**rollout_metrics(sampled), **learner.memory()})
    log.add({"restem/num_examples": len(examples), "restem/chosen_step": chosen.step})
    log.add({"restem/validation_accuracy": chosen.accuracy})
    no_gain = progress.accuracy is not None and chosen.accuracy <= progress.accuracy
    return Progress(iteration + 1, chosen.accuracy, initial_accuracy, no_gain), learner, chosen.weights


def keep_correct(groups: Sequence[Group], cfg: RestEMConfig) -> list[Sample]:
    """The distinct correct responses to every problem, in the order they were sampled, at most so many."""
    kept: list[Sample] = []
    for group in groups:
        correct = {rollout.token_ids: rollout for rollout in group if rollout.reward >= cfg.reward_threshold}
        rollouts = list(correct.values())[: cfg.max_responses_per_problem]
        kept += [make_sample(rollout.prompt_ids, rollout.token_ids, rollout.action_mask) for rollout in rollouts]
    return kept


def select(candidates: Iterable[Candidate], rule: Literal["best", "first_dip"]) -> Candidate:
    """Of equally accurate ones the earliest. Looks at no more candidates than it needs, and keeps one."""
    candidates = iter(candidates)
    chosen = next(candidates)
    for candidate in candidates:
        if candidate.accuracy > chosen.accuracy:
            chosen = candidate
        elif rule == "first_dip":
            break
    return chosen


def load_progress(checkpoint: Checkpoint | None) -> Progress:
    if checkpoint is None:
        return Progress()
    stored = {field.name: checkpoint.progress.get(field.name) for field in fields(Progress)}
    try:
        return TypeAdapter(Progress).validate_python(stored)
    except ValidationError as error:
        raise UserError(
            f"{checkpoint.folder / PROGRESS}: {error.errors()[0]['loc'][0]} is missing or damaged"
        ) from None
