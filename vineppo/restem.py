"""RestEM: sample, keep what is right, refit the initial policy to it, select on validation problems, repeat.

Singh et al. 2024, "Beyond Human Data" (ReST-EM), as the paper's baseline has it. Every refit starts again from the
policy that training started from, with a fresh optimizer; only the sampling policy moves on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

from pydantic import Field

from vineppo.config import Config
from vineppo.environment import Environment
from vineppo.epochs import minibatches, num_steps
from vineppo.evaluate import Evaluation, EvaluationConfig
from vineppo.learner import PolicyLearner
from vineppo.metrics import MetricsLog
from vineppo.rollouts import SamplingConfig, rollout_metrics, sample_iteration, token_metrics, verdict_metrics
from vineppo.seeding import derive_seed
from vineppo.shutdown import Shutdown
from vineppo.types import Group, Sample, make_sample


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
            run.log.add(learner.step_nll(minibatch))
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
