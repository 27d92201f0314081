"""Runs: a recipe becomes parts, the parts run in a folder, and the folder can be resumed, evaluated and read.

runs/NAME/ holds recipe.toml, environment.json, metrics.jsonl, timings.jsonl, checkpoints/, rollouts/ and result.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vineppo import runtime
from vineppo.checkpoint import Checkpoint, checkpoint_folders, load_checkpoint, save_checkpoint
from vineppo.config import diff, write_toml
from vineppo.credit import CREDIT
from vineppo.engine import ENGINES
from vineppo.environment import Environment
from vineppo.evaluate import Evaluation, evaluate
from vineppo.learner import PolicyLearner
from vineppo.metrics import METRICS, MetricsLog, Sink
from vineppo.models import load_model, load_tokenizer, make_symbol_tokenizer, make_tiny_model, save_model
from vineppo.recipe import Recipe, SFTRecipe, TrainRecipe, load_recipe
from vineppo.rollouts import save_rollouts
from vineppo.seeding import derive_seed
from vineppo.sft import fine_tune, make_examples
from vineppo.shutdown import Shutdown, Stopped
from vineppo.tasks import TASKS
from vineppo.tasks.grading import Grader
from vineppo.train import Run, train
from vineppo.types import Credit, Engine, Group, SamplingParams, Task, UserError

Say = Callable[[str], None]


@dataclass
class Session:
    """What a run of any kind stands on."""

    folder: Path
    recipe: Recipe
    checkpoint: Checkpoint | None
    task: Task
    tokenizer: Any
    policy: Any  # the model that is trained
    grader: Grader
    log: MetricsLog
    shutdown: Shutdown

    @property
    def completed(self) -> int:
        """Iterations (optimizer steps, for SFT) that the checkpoint holds."""
        return self.checkpoint.iteration if self.checkpoint else 0

    def make_engine(self) -> Engine:
        section = self.recipe.engine
        return ENGINES[section.name](section, self.policy, self.tokenizer)  # type: ignore[attr-defined]

    def make_learner(self, reference: Any, *, temperature: float, total_steps: int) -> PolicyLearner:
        learner = PolicyLearner(
            self.recipe.learner, self.policy, reference, temperature=temperature, total_steps=total_steps
        )
        if self.checkpoint:
            learner.load_trainer_state(self.checkpoint.state["learner"])
        return learner

    def make_environment(self, engine: Engine, params: SamplingParams, max_prompt_tokens: int | None) -> Environment:
        longest = longest_prompt(self.policy)
        return Environment(
            engine, self.task, self.grader, self.tokenizer, params, min(max_prompt_tokens or longest, longest)
        )

    def evaluate(self, engine: Engine, iteration: int) -> None:
        """Into the log, and into result.json, which holds the latest one."""
        config = self.recipe.evaluation
        with self.log.phase("evaluate"):
            environment = self.make_environment(engine, config.params(), None)
            evaluation = evaluate(environment, config, seed=derive_seed(self.recipe.seed, "evaluation"))
        self.log.add(evaluation.metrics())
        told = {"recipe": self.recipe.name, "seed": self.recipe.seed, "iteration": iteration}
        (self.folder / "result.json").write_text(json.dumps(evaluation.to_json() | told, indent=1) + "\n")

    def save(self, iteration: int, learner: PolicyLearner, credit_state: dict[str, Any]) -> None:
        with self.log.phase("checkpoint"):
            save_checkpoint(
                self.folder / "checkpoints",
                save_policy=lambda folder: save_model(self.policy, self.tokenizer, folder),
                state={"learner": learner.trainer_state(), "credit": credit_state},
                progress={"iteration": iteration, "seed": self.recipe.seed},
                config=self.recipe.checkpoint,
            )


@contextmanager
def open_session(recipe: Recipe, folder: Path, *, resume: bool, sinks: Sequence[Sink], say: Say) -> Iterator[Session]:
    checkpoint = find_checkpoint(folder, recipe, resume=resume, warn=say)
    task = TASKS[recipe.task.name](recipe.task)  # type: ignore[attr-defined]
    if not task.split(recipe.evaluation.split):  # a mistake here must not wait for the last iteration
        raise UserError(f"evaluation.split = {recipe.evaluation.split!r} is empty")
    tokenizer, policy = load_policy(recipe, task, checkpoint)
    if not resume:
        begin_folder(folder, recipe)
    with (
        Shutdown(say).installed() as shutdown,
        Grader(task, recipe.grading) as grader,
        MetricsLog(folder, recipe.metrics, sinks) as log,
    ):
        log.truncate_after(checkpoint.iteration if checkpoint else 0)
        yield Session(folder, recipe, checkpoint, task, tokenizer, policy, grader, log, shutdown)


def find_checkpoint(folder: Path, recipe: Recipe, *, resume: bool, warn: Say) -> Checkpoint | None:
    """Where a run in this folder stopped; refuses whatever would mix two runs."""
    stored = folder / "recipe.toml"
    if not stored.exists():
        if folder.exists() and {path.name for path in folder.iterdir()} - {"environment.json", "recipe.toml.part"}:
            raise UserError(f"{folder} is not empty and not a run; choose another --out")
        if resume:
            raise UserError(f"{folder}: no run to resume")
        return None
    if not resume:
        if (folder / METRICS).exists() or checkpoint_folders(folder / "checkpoints"):
            raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
        return None  # nothing came of it, as of a mistake in the recipe
    changes = diff(load_recipe(stored, kind=type(recipe)), recipe)
    if changes:
        lines = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
        raise UserError(f"{folder}: the recipe has changed since this run began ({lines}); choose another --out")
    return load_checkpoint(folder / "checkpoints", warn)


def begin_folder(folder: Path, recipe: Recipe) -> None:
    """recipe.toml comes last and by renaming: a folder that has one is a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(
        json.dumps(runtime.environment(runtime.pick_device(recipe.device)), indent=1) + "\n"
    )
    write_toml(recipe, folder / "recipe.toml.part")
    (folder / "recipe.toml.part").rename(folder / "recipe.toml")


def load_policy(recipe: Recipe, task: Task, checkpoint: Checkpoint | None = None) -> tuple[Any, Any]:
    """(tokenizer, model) with fp32 master weights: the recipe's model, or the checkpoint's where there is one."""
    device = runtime.pick_device(recipe.device)
    source = str(checkpoint.folder) if checkpoint else recipe.model.name
    if source is not None:
        return load_tokenizer(source), load_model(source, device=device)
    assert recipe.model.from_scratch is not None
    symbols = getattr(task, "symbols", None)
    if symbols is None:
        raise UserError(f"task {recipe.task.name} does not list its symbols, so give model.name, not from_scratch")  # type: ignore[attr-defined]
    tokenizer = make_symbol_tokenizer(symbols)
    model = make_tiny_model(tokenizer, recipe.model.from_scratch, derive_seed(recipe.seed, "init"))
    return tokenizer, model.to(device)  # type: ignore[arg-type]


def train_run(
    recipe: TrainRecipe, folder: Path, *, resume: bool = False, sinks: Sequence[Sink] = (), say: Say = print
) -> Path:
    """Trains, and returns the folder of the last checkpoint."""
    with open_session(recipe, folder, resume=resume, sinks=sinks, say=say) as session:
        engine = session.make_engine()
        environment = session.make_environment(engine, recipe.sampling.params(), recipe.sampling.max_prompt_tokens)
        _, reference = load_policy(recipe, session.task) if recipe.learner.kl_coef > 0 else (None, None)
        rollouts_per_iteration = recipe.sampling.prompts_per_iteration * recipe.sampling.group_size
        steps_per_epoch = -(-rollouts_per_iteration // recipe.train.minibatch_size)
        learner = session.make_learner(
            reference,
            temperature=recipe.sampling.temperature,
            total_steps=recipe.train.num_iterations * recipe.train.num_epochs * steps_per_epoch,
        )
        credit = CREDIT[recipe.credit.name](recipe.credit, environment)  # type: ignore[attr-defined]
        if session.checkpoint:
            credit.load_state_dict(session.checkpoint.state["credit"])
            engine.load_weights(learner.state_dict(), version=session.completed)
        completed = session.completed

        def finish_iteration(iteration: int, groups: list[Group], credits: list[list[Credit]]) -> None:
            nonlocal completed
            last = recipe.train.num_iterations
            if due(recipe.evaluation.every, iteration, last):
                session.evaluate(engine, iteration)
            if due(recipe.train.save_rollouts_every, iteration, last):
                save_rollouts(folder / "rollouts" / f"iteration-{iteration:06d}.jsonl.gz", groups, credits, environment)
            session.log.write(iteration, machine())
            completed = iteration
            if due(recipe.checkpoint.every, iteration, last):
                session.save(iteration, learner, credit.state_dict())

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
            session.save(completed, learner, credit.state_dict())
            raise
    return checkpoint_folders(folder / "checkpoints")[-1]


def sft_run(
    recipe: SFTRecipe,
    folder: Path,
    *,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    say: Say = print,
    on_start: Callable[[int], None] = lambda total_steps: None,
) -> Path:
    """Fine-tunes on worked solutions, and returns the folder of the last checkpoint.

    An iteration of the log is one optimizer step; evaluations and checkpoints are due at the ends of epochs.
    """
    with open_session(recipe, folder, resume=resume, sinks=sinks, say=say) as session:
        examples, num_too_long = make_examples(
            session.task,
            session.tokenizer,
            recipe.sft,
            context=longest_prompt(session.policy) + 1,
            seed=recipe.seed,
        )
        num_epochs, total_steps = recipe.sft.num_epochs, recipe.sft.num_steps(len(examples))
        learner = session.make_learner(None, temperature=1.0, total_steps=total_steps)
        on_start(total_steps)
        completed = session.completed

        def finish_step(step: int) -> None:
            nonlocal completed
            epoch, rest = divmod(step, total_steps // num_epochs)
            if rest == 0:
                session.log.add({"sft/num_too_long": num_too_long, "sft/num_examples": len(examples)})
            if rest == 0 and due(recipe.evaluation.every, epoch, num_epochs):
                session.evaluate(session.make_engine(), step)
            session.log.write(step, machine())
            completed = step
            if rest == 0 and due(recipe.checkpoint.every, epoch, num_epochs):
                session.save(step, learner, {})

        try:
            fine_tune(
                recipe.sft,
                examples=examples,
                learner=learner,
                log=session.log,
                shutdown=session.shutdown,
                finish_step=finish_step,
                seed=recipe.seed,
                first_step=session.completed,
            )
        except Stopped:
            session.save(completed, learner, {})
            raise
    return checkpoint_folders(folder / "checkpoints")[-1]


def eval_run(recipe: Recipe) -> Evaluation:
    """Evaluates the recipe's model on the recipe's task."""
    task = TASKS[recipe.task.name](recipe.task)  # type: ignore[attr-defined]
    tokenizer, model = load_policy(recipe, task)
    engine = ENGINES[recipe.engine.name](recipe.engine, model, tokenizer)  # type: ignore[attr-defined]
    with Grader(task, recipe.grading) as grader:
        environment = Environment(engine, task, grader, tokenizer, recipe.evaluation.params(), longest_prompt(model))
        return evaluate(environment, recipe.evaluation, seed=derive_seed(recipe.seed, "evaluation"))


def longest_prompt(model: Any) -> int:
    """In tokens, with room for one more."""
    return (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - 1


def machine() -> dict[str, float]:
    return {"memory/peak_mb": runtime.peak_memory_mb()}


def due(every: int, iteration: int, last: int) -> bool:
    """Every so many iterations, and at the end."""
    return iteration == last or (every > 0 and iteration % every == 0)
