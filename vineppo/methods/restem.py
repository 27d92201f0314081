"""RestEM: sample, keep what is right, refit the initial policy to it, select on validation problems, repeat.

Singh et al. 2024, "Beyond Human Data" (ReST-EM), as the paper's baseline has it. Every refit starts again from the
policy that training started from, with a fresh optimizer; only the sampling policy moves on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from vineppo.config import Config
from vineppo.environment import Environment
from vineppo.evaluate import Evaluation, EvaluationConfig, evaluate
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.epochs import minibatches, num_steps
from vineppo.methods.sft import nll_loss
from vineppo.rollouts import SamplingConfig, rollout_metrics, sample_iteration, token_metrics, verdict_metrics
from vineppo.runs.checkpoint import PROGRESS, Checkpoint
from vineppo.runs.metrics import MetricsLog
from vineppo.runs.recipe import SamplingRecipe
from vineppo.runs.session import OnStart, Session, due, machine
from vineppo.runs.shutdown import Shutdown, Stopped
from vineppo.seeding import derive_seed
from vineppo.types import Group, Sample, UserError, make_sample


class RestEMConfig(Config):
    num_iterations: int = Field(default=10, ge=1)
    max_responses_per_problem: int = Field(default=10, ge=1)
    """Right responses to learn from, distinct ones."""
    reward_threshold: float = Field(default=1.0, gt=0, le=1)
    """Reward from which a response is right."""
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


@dataclass(frozen=True)
class RestEMRun:
    """The parts of a RestEM run, wired by the command line."""

    seed: int
    environment: Environment
    sampling: SamplingConfig
    policy: Any
    initial_weights: dict[str, Any]
    make_learner: Callable[[int], PolicyLearner]
    """A learner of `policy` with a fresh optimizer for so many steps."""
    validate: Callable[[], Evaluation]
    """Of the weights the engine holds."""
    log: MetricsLog
    shutdown: Shutdown
    finish_iteration: Callable[[Progress, PolicyLearner, dict[str, Any]], None]
    """Called with how far the run is, the learner of the refit, and the policy's weights."""


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


def restem(cfg: RestEMConfig, run: RestEMRun, *, progress: Progress = Progress()) -> None:
    """An iteration is only kept when it is complete: a stop inside of one throws it away."""
    environment, engine, log = run.environment, run.environment.engine, run.log
    initial_accuracy = progress.initial_accuracy
    for iteration in range(progress.iteration, cfg.num_iterations):
        if progress.is_finished(cfg):
            return
        seed = partial(derive_seed, run.seed, iteration)
        usage_before, verdicts_before = Counter(engine.usage), Counter(environment.grader.verdicts)
        with run.shutdown.interruptible():
            with log.phase("sample"):
                sampled = sample_iteration(environment, run.sampling, seed=seed)
            examples = keep_right(sampled.groups, cfg)
            learner = run.make_learner(num_steps(len(examples), cfg.minibatch_size, cfg.num_epochs))
            run.policy.load_state_dict(run.initial_weights)
            if initial_accuracy is None:
                initial_accuracy = validate(run, iteration)
            initial = Candidate(0, initial_accuracy, run.initial_weights)
            refitted = refit(cfg, run, learner, examples, iteration=iteration)
            chosen = select(chain([initial], refitted), cfg.select)
        run.policy.load_state_dict(chosen.weights)
        engine.load_weights(chosen.weights, version=iteration + 1)

        log.add(rollout_metrics(sampled) | learner.memory())
        log.add({"restem/num_examples": len(examples), "restem/chosen_step": chosen.step})
        log.add({"restem/validation_accuracy": chosen.accuracy})
        log.add(token_metrics(engine.usage - usage_before))
        log.add(verdict_metrics(environment.grader.verdicts - verdicts_before))
        no_gain = progress.accuracy is not None and chosen.accuracy <= progress.accuracy
        progress = Progress(iteration + 1, chosen.accuracy, initial_accuracy, no_gain)
        run.finish_iteration(progress, learner, chosen.weights)


def keep_right(groups: Sequence[Group], cfg: RestEMConfig) -> list[Sample]:
    """The distinct right responses to every problem, in the order they were sampled, at most so many."""
    kept: list[Sample] = []
    for group in groups:
        right = {rollout.token_ids: rollout for rollout in group if rollout.reward >= cfg.reward_threshold}
        rollouts = list(right.values())[: cfg.max_responses_per_problem]
        kept += [make_sample(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
    return kept


def refit(
    cfg: RestEMConfig, run: RestEMRun, learner: PolicyLearner, examples: Sequence[Sample], *, iteration: int
) -> Iterator[Candidate]:
    """Maximum likelihood on `examples`, from the weights the policy has. No examples, no candidates."""
    last = num_steps(len(examples), cfg.minibatch_size, cfg.num_epochs)
    shuffle = partial(derive_seed, run.seed, iteration, "refit")
    for step, minibatch in minibatches(examples, cfg.minibatch_size, cfg.num_epochs, seed=shuffle):
        with run.log.phase("update"):
            run.log.add(learner.step(minibatch, nll_loss))
        if step + 1 == last or (step + 1) % cfg.candidates_every == 0:
            weights = {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}
            yield Candidate(step + 1, validate(run, iteration), weights)


def validate(run: RestEMRun, iteration: int) -> float:
    with run.log.phase("select"):
        run.environment.engine.load_weights(run.policy.state_dict(), version=iteration)
        return run.validate().scores["pass@1"].mean


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


class RestEMRecipe(SamplingRecipe):
    """For `vineppo train`, with a [restem] section."""

    restem: RestEMConfig

    @property
    def num_rounds(self) -> int:
        return self.restem.num_iterations

    @property
    def evaluations(self) -> dict[str, EvaluationConfig]:
        return {**super().evaluations, "restem.validation": self.restem.validation}


def run_restem(recipe: RestEMRecipe, session: Session, on_start: OnStart) -> None:
    engine, validation = session.make_engine(), recipe.restem.validation
    session.check_evaluation(engine)
    session.check_evaluation(engine, validation, "restem.validation")
    environment = session.make_environment(engine, recipe.sampling.params(), recipe.sampling.max_prompt_tokens)
    reference = session.load_initial_policy()
    progress = load_progress(session.checkpoint)
    weights: dict[str, Any] = {}  # of the last completed iteration
    last = recipe.restem.num_iterations
    on_start(last)

    def make_learner(total_steps: int) -> PolicyLearner:
        return PolicyLearner(
            recipe.learner, session.policy, reference, sampling=recipe.sampling.params(), total_steps=total_steps
        )

    def end_iteration(now: Progress, learner: PolicyLearner) -> None:
        if now.is_finished(recipe.restem) or due(recipe.evaluation.every, now.iteration, last):
            session.evaluate(engine, now.iteration, learner)
        session.log.write(now.iteration, machine())

    def finish_iteration(now: Progress, learner: PolicyLearner, chosen: dict[str, Any]) -> None:
        nonlocal progress, weights
        if now.is_finished(recipe.restem) or session.must_save(now.iteration, last):
            save(now, session.log.pending())
        end_iteration(now, learner)
        progress, weights = now, chosen

    def save(now: Progress, pending: dict[str, Any] | None = None) -> None:
        session.save(learner=None, pending=pending, **asdict(now))  # every refit begins with a fresh optimizer

    run = RestEMRun(
        recipe.seed,
        environment,
        recipe.sampling,
        session.policy,
        reference.state_dict(),
        make_learner,
        partial(
            evaluate,
            session.make_environment(engine, validation.params(), None),
            validation,
            seed=derive_seed(recipe.seed, "validation"),
            purpose="validation",
        ),
        session.log,
        session.shutdown,
        finish_iteration,
    )
    if session.take_up_line():
        engine.load_weights(session.policy.state_dict(), version=progress.iteration)
        end_iteration(progress, make_learner(1))
    try:
        restem(recipe.restem, run, progress=progress)
    except Stopped:
        if weights:  # the refit that was under way is lost
            session.policy.load_state_dict(weights)
            save(progress)
        raise


def load_progress(checkpoint: Checkpoint | None) -> Progress:
    if checkpoint is None:
        return Progress()
    told = {field.name: checkpoint.progress.get(field.name) for field in fields(Progress)}
    try:
        return TypeAdapter(Progress).validate_python(told)
    except ValidationError as error:
        raise UserError(
            f"{checkpoint.folder / PROGRESS}: {error.errors()[0]['loc'][0]} is missing or damaged"
        ) from None
