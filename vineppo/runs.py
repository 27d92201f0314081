"""Runs: the parts of every kind of recipe wired together. RUNS maps a kind of recipe to what runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vineppo.checkpoint import PROGRESS, Checkpoint, checkpoint_folders
from vineppo.credit import CREDIT
from vineppo.credit.parts import Parts
from vineppo.dpo import add_reference, load_pairs, make_pairs, save_pairs
from vineppo.engine import ENGINES
from vineppo.environment import Environment
from vineppo.epochs import minibatches, num_steps
from vineppo.evaluate import Evaluation, evaluate
from vineppo.learner import Pair, PolicyLearner
from vineppo.metrics import Sink
from vineppo.recipe import DPORecipe, Recipe, RestEMRecipe, SFTRecipe, TrainRecipe
from vineppo.restem import Progress, RestEMRun, restem
from vineppo.rollouts import rollout_metrics, sample_iteration, save_rollouts, token_metrics, verdict_metrics
from vineppo.run_folder import CHECKPOINTS
from vineppo.seeding import derive_seed
from vineppo.session import Say, Session, due, load_policy, longest_prompt, machine, open_session
from vineppo.sft import make_examples
from vineppo.shutdown import Stopped
from vineppo.tasks import TASKS
from vineppo.tasks.grading import Grader
from vineppo.train import Run, train
from vineppo.types import Credit, Group, SamplingParams, UserError

T = TypeVar("T")

OnStart = Callable[[int], None]  # told how many iterations the log will have


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    say: Say = print,
    on_start: OnStart = lambda total: None,
) -> Path:
    """Runs a recipe of any kind, and returns the folder of its last checkpoint."""
    with open_session(recipe, folder, resume=resume, sinks=sinks, say=say) as session:
        if session.is_finished:
            say(f"{folder}: already done, {session.completed} iterations or steps; a run of them is not begun again")
        else:
            RUNS[type(recipe)](session.recipe, session, on_start)
            session.finish()
    return checkpoint_folders(folder / CHECKPOINTS)[-1]


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
        engine.load_weights(learner.state_dict(), version=session.completed)
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


def run_sft(recipe: SFTRecipe, session: Session, on_start: OnStart) -> None:
    session.check_evaluation(session.make_engine())
    examples, num_too_long = make_examples(
        session.task,
        session.tokenizer,
        recipe.sft,
        context=longest_prompt(session.policy) + 1,
        seed=recipe.seed,
    )
    learner = session.make_learner(
        None,
        sampling=SamplingParams(),
        total_steps=num_steps(len(examples), recipe.sft.minibatch_size, recipe.sft.num_epochs),
    )
    run_epochs(
        session,
        learner,
        examples,
        recipe.sft.minibatch_size,
        recipe.sft.num_epochs,
        step=learner.step_nll,
        seed=partial(derive_seed, recipe.seed, "sft"),
        once_an_epoch={"sft/num_too_long": num_too_long, "sft/num_examples": len(examples)},
        on_start=on_start,
    )


def run_dpo(recipe: DPORecipe, session: Session, on_start: OnStart) -> None:
    """Pairs and their reference log-probs are made once, before the first step, and are part of every checkpoint."""
    config = recipe.dpo
    session.check_evaluation(session.make_engine())
    pairs = load_pairs(session.checkpoint.folder) if session.checkpoint else sample_pairs(recipe, session)
    learner = session.make_learner(
        session.load_initial_policy(),
        sampling=recipe.sampling.params(),
        total_steps=num_steps(len(pairs), config.minibatch_size, config.num_epochs),
    )
    if not session.checkpoint:
        with session.log.phase("score"):
            pairs = add_reference(pairs, learner.score)
    run_epochs(
        session,
        learner,
        pairs,
        config.minibatch_size,
        config.num_epochs,
        step=partial(
            learner.step_dpo,
            beta=config.beta,
            positive_lambda=config.positive_lambda,
            label_smoothing=config.label_smoothing,
        ),
        seed=partial(derive_seed, recipe.seed, "dpo"),
        once_an_epoch={"dpo/num_pairs": len(pairs)},
        on_start=on_start,
        save_more=partial(save_pairs, pairs),
    )


def sample_pairs(recipe: DPORecipe, session: Session) -> list[Pair]:
    """From the initial policy; how many tokens and rewards that took stands in the log's first line."""
    engine = session.make_engine()
    environment = session.make_environment(engine, recipe.sampling.params(), recipe.sampling.max_prompt_tokens)
    seed = partial(derive_seed, recipe.seed)
    with session.shutdown.interruptible(), session.log.phase("sample"):
        sampled = sample_iteration(environment, recipe.sampling, seed=seed)
    session.log.add(rollout_metrics(sampled) | token_metrics(engine.usage) | verdict_metrics(session.grader.verdicts))
    pairs = make_pairs(sampled.groups, recipe.dpo, seed=seed("pairs"))
    if not pairs:
        raise UserError("no problem has both a right and a wrong response, so there is no pair to learn from")
    return pairs


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


def run_epochs(
    session: Session,
    learner: PolicyLearner,
    rows: Sequence[T],
    minibatch_size: int,
    num_epochs: int,
    *,
    step: Callable[[Sequence[T]], dict[str, float]],
    seed: Callable[[int], int],
    once_an_epoch: dict[str, float],
    on_start: OnStart,
    save_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """An iteration of the log is one optimizer step; evaluations and checkpoints are due at the ends of epochs."""
    recipe, log = session.recipe, session.log
    total_steps = num_steps(len(rows), minibatch_size, num_epochs)
    steps_per_epoch = total_steps // num_epochs
    on_start(total_steps)

    def end_step(completed: int, epoch: int, rest: int) -> None:
        if rest == 0 and due(recipe.evaluation.every, epoch, num_epochs):
            session.evaluate(session.make_engine(), completed, learner)
        log.write(completed, machine())

    if session.take_up_line():
        end_step(session.completed, *divmod(session.completed, steps_per_epoch))
    order = minibatches(rows, minibatch_size, num_epochs, seed=seed, first_step=session.completed)
    for steps_before, minibatch in order:
        with log.phase("update"):
            log.add(step(minibatch))
        completed = steps_before + 1
        epoch, rest = divmod(completed, steps_per_epoch)
        if rest == 0:
            log.add(once_an_epoch | learner.memory())
            if session.must_save(epoch, num_epochs):
                session.save(completed, learner, pending=log.pending(), save_more=save_more)
        end_step(completed, epoch, rest)
        if completed < total_steps:
            try:
                session.shutdown.check()
            except Stopped:
                session.save(completed, learner, save_more=save_more)
                raise


def eval_recipe(recipe: Recipe) -> Evaluation:
    """Evaluates the recipe's model on the recipe's task."""
    task = TASKS[recipe.task.name](recipe.task)  # type: ignore[attr-defined]
    tokenizer, model = load_policy(recipe, task)
    engine = ENGINES[recipe.engine.name](recipe.engine, model, tokenizer)  # type: ignore[attr-defined]
    with Grader(task, recipe.grading) as grader:
        environment = Environment(engine, task, grader, tokenizer, recipe.evaluation.params(), longest_prompt(model))
        return evaluate(environment, recipe.evaluation, seed=derive_seed(recipe.seed, "evaluation"))


RUNS = {TrainRecipe: run_train, SFTRecipe: run_sft, RestEMRecipe: run_restem, DPORecipe: run_dpo}
