"""A session: a recipe set up in a folder of its own, where the run can be stopped, resumed and read.

runs/NAME/ holds recipe.toml, environment.json, metrics.jsonl, timings.jsonl, checkpoints/, rollouts/ and result.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vineppo.config import read_toml, write_toml
from vineppo.environment import Environment
from vineppo.evaluate import EvaluationConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.machine import runtime
from vineppo.machine.files import write_json
from vineppo.machine.tensor_files import save_tensors
from vineppo.models.make import save_model
from vineppo.protocols import Engine, Learner, Task, Trainable
from vineppo.runs.changes import Changes, architecture, continued, deciding, settle
from vineppo.runs.checkpoint import (
    PROGRESS,
    STATE,
    Checkpoint,
    checkpoint_folders,
    is_due,
    iteration_of,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from vineppo.runs.estimate import announce_days, announce_vines, check_sizes
from vineppo.runs.lock import lock_folder
from vineppo.runs.metrics import MetricsLog, Sink, mend_logs
from vineppo.runs.recipe import Recipe, is_own_task, make_recipe
from vineppo.runs.run_folder import (
    CHECKPOINTS,
    ENVIRONMENT,
    RECIPE,
    RESULT,
    ROLLOUTS,
    finished_iteration,
    holds_a_run,
    read_result,
    refuse_foreign,
    remove_leftovers,
)
from vineppo.runs.setup import Setup, set_up
from vineppo.runs.shutdown import Shutdown, Stopped
from vineppo.runs.task_check import TaskCheck
from vineppo.runs.template_note import announce_template
from vineppo.types import Problem, Request, SamplingParams, UserError

R = TypeVar("R", bound=Recipe)

Echo = Callable[[str], None]
Save = Callable[[Path], None]
"""Writes more into a checkpoint's folder."""


@dataclass(frozen=True)
class Session:
    """What a run of any method stands on."""

    folder: Path
    setup: Setup
    checkpoint: Checkpoint | None
    log: MetricsLog
    shutdown: Shutdown
    owes_line: bool
    """The checkpoint's iteration is learnt, but not evaluated where that was due, and not in the log."""
    is_finished: bool
    """There is nothing left to do."""
    on_start: Callable[[int], None]
    """Called once with the number of iterations that the log will have."""

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @property
    def completed(self) -> int:
        """Iterations (optimizer steps, for SFT and DPO+) that the checkpoint holds."""
        return self.checkpoint.iteration if self.checkpoint else 0

    def rollouts_file(self, iteration: int) -> Path:
        return self.folder / ROLLOUTS / f"iteration-{iteration:06d}.jsonl.gz"

    def make_learner(self, reference: Any, *, sampling: SamplingParams, total_steps: int) -> PolicyLearner:
        """With the checkpoint's optimizer, where there is one."""
        learner = self.setup.make_learner(reference, sampling=sampling, total_steps=total_steps)
        if self.checkpoint:
            learner.load(self.checkpoint.folder)
        return learner

    def check_evaluations(self, engine: Engine) -> None:
        """What would end an evaluation must not wait for it: it is found before the first step."""
        for section, config in self.recipe.evaluations.items():
            environment = self.setup.make_environment(engine, config)
            check_evaluation(environment, config, section)

    def evaluate(self, engine: Engine, iteration: int, learner: Learner) -> None:
        """Into the log, and into result.json, which holds the latest one."""
        with self.log.phase("evaluate"):
            evaluation = self.setup.evaluate(engine)
            self.log.add(learner.divergence(evaluation.first_samples))
        self.log.add(evaluation.metrics())
        self.write_result(evaluation.to_json(), iteration)

    def write_result(self, result: dict[str, Any], iteration: int) -> None:
        facts = {"recipe": self.recipe.name, "seed": self.recipe.seed, "iteration": iteration}
        write_json(self.folder / RESULT, result | facts)

    def finish(self) -> None:
        """Marks the run as complete, for whoever compares runs. A result that was lost is measured again."""
        iteration = iteration_of(checkpoint_folders(self.folder / CHECKPOINTS)[-1])
        result = read_result(self.folder)
        if self.recipe.trains_policy and (result.get("iteration") != iteration or "pass@1" not in result):
            self.write_result(self.setup.evaluate(self.setup.make_engine()).to_json(), iteration)
        write_json(self.folder / RESULT, read_result(self.folder) | {"finished": True})

    def iterations(self, last: int) -> range:
        """Counted from 0: those that are to be run, and before them the one whose line is owed."""
        self.on_start(last)
        return range(self.completed - 1 if self.owes_line else self.completed, last)

    def take_up_owed(self, iteration: int) -> bool:
        """Where a kill came between the checkpoint after this iteration and its line, puts its metrics into the log.

        What is left to do then is to evaluate, where that is due, and to write the line.
        """
        if iteration >= self.completed:
            return False
        assert self.checkpoint is not None
        self.log.add(self.checkpoint.progress["pending"])
        return True

    @contextmanager
    def saving_when_stopped(self, save: Callable[[int], None]) -> Iterator[None]:
        """Calls `save` with the number of complete iterations, where a signal ends the run."""
        try:
            yield
        except Stopped:
            save(self.log.iteration)
            raise

    def must_save(self, iteration: int, last: int) -> bool:
        """A checkpoint goes before every evaluation too, so that nothing that happens in there loses training."""
        recipe = self.recipe
        return is_due(recipe.checkpoint.every, iteration, last) or is_due(recipe.evaluation.every, iteration, last)

    def save(
        self,
        iteration: int,
        learner: Trainable | None,
        *,
        pending: dict[str, Any] | None = None,
        save_more: Save = lambda folder: None,
        **progress: Any,
    ) -> None:
        """Without a learner where the run goes on with a fresh one. `progress` comes back with the checkpoint.

        `pending` is what the log has of this iteration where its line is yet to be written.
        """
        setup = self.setup
        facts = {"recipe": deciding(setup.recipe), "architecture": architecture(setup.policy), "pending": pending}

        def save_parts(folder: Path) -> None:
            save_model(setup.policy, setup.tokenizer, folder)
            if learner:
                learner.save(folder)
            else:
                save_tensors({}, folder / STATE)
            save_more(folder)

        with self.log.phase("checkpoint"):
            save_checkpoint(
                self.folder / CHECKPOINTS,
                save_parts=save_parts,
                expected_bytes=(3 if learner else 1) * sum(p.nbytes for p in setup.policy.parameters()),
                progress={"iteration": iteration, "seed": setup.recipe.seed, **progress, **facts},
                config=setup.recipe.checkpoint,
            )


@contextmanager
def open_session(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool,
    sinks: Sequence[Sink] = (),
    echo: Echo = print,
    on_start: Callable[[int], None] = lambda total: None,
) -> Iterator[Session]:
    check_sizes(recipe)
    refuse_foreign(folder)
    with lock_folder(folder, echo):
        recipe, changes = find_run(folder, recipe, resume=resume)
        remove_leftovers(folder)
        checkpoint = load_checkpoint(folder / CHECKPOINTS, echo)
        if checkpoint:
            check_checkpoint(checkpoint, recipe)
            prune(folder / CHECKPOINTS, recipe.checkpoint, newest=checkpoint.iteration)  # a kill may have come first
        with Shutdown(echo).installed() as shutdown, set_up(recipe, checkpoint and checkpoint.folder) as setup:
            if recipe.trains_policy:
                split_of(setup.task, recipe.evaluation, "evaluation")
            if is_own_task(recipe.task) and not checkpoint:
                list(TaskCheck(recipe, setup.task, setup.grader).run(look_ahead=False))
            if checkpoint:
                check_architecture(checkpoint, setup.policy)
            is_finished = is_done(folder, checkpoint) and recipe.length not in changes
            if not is_finished:
                keep_recipe(folder, recipe, changes, echo)
                notes = announce_vines(recipe), announce_days(recipe), announce_template(recipe, setup.tokenizer)
                for note in filter(None, notes):
                    echo(note)
            iteration, pending = (checkpoint.iteration, checkpoint.progress["pending"]) if checkpoint else (0, None)
            owes_line = mend_logs(folder, iteration, may_owe=pending is not None, echo=echo)
            with MetricsLog(folder, recipe.metrics, sinks, iteration=iteration) as log:
                yield Session(folder, setup, checkpoint, log, shutdown, owes_line, is_finished, on_start)


def find_run(folder: Path, recipe: R, *, resume: bool) -> tuple[R, Changes]:
    """The recipe that runs in this folder, with the weights that it begins or began with, and what is new in it."""
    if not resume:
        if holds_a_run(folder):
            raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
        return recipe.model_copy(update={"model": settle(recipe.model)}), {}
    path = folder / RECIPE
    if not path.exists():
        raise UserError(f"{folder}: no run to resume")
    return continued(make_recipe(read_toml(path), kind=type(recipe), source=str(path)), recipe, folder)


def keep_recipe(folder: Path, recipe: Recipe, changes: Changes, echo: Echo) -> None:
    """In the folder of a run that begins, or that goes on with changes."""
    for key, (old, new) in changes.items():
        echo(f"{folder}: {key} was {old!r} and is {new!r} from here on")
    if changes and finished_iteration(folder) is not None:  # before the recipe, which says that there is more to do
        write_json(folder / RESULT, {key: value for key, value in read_result(folder).items() if key != "finished"})
    if changes or not (folder / CHECKPOINTS).exists():
        write_toml(recipe, folder / RECIPE)
    if not (folder / ENVIRONMENT).exists():
        write_json(folder / ENVIRONMENT, runtime.describe_machine(runtime.pick_device(recipe.device)))


def is_done(folder: Path, checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and finished_iteration(folder) == checkpoint.iteration


def check_architecture(checkpoint: Checkpoint, policy: Any) -> None:
    if architecture(policy) != checkpoint.progress["architecture"]:
        raise UserError(f"{checkpoint.folder}: holds another model than it was saved with; remove the checkpoint")


def check_checkpoint(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raises UserError where it is of another run."""
    place = checkpoint.folder / PROGRESS
    for key, kinds in {"recipe": (dict,), "architecture": (str,), "pending": (dict, type(None))}.items():
        if not isinstance(checkpoint.progress.get(key, 0), kinds):
            raise UserError(f"{place}: {key!r} is missing or damaged, so it is no checkpoint of this run; remove it")
    ours, theirs = deciding(recipe), checkpoint.progress["recipe"]
    differing = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if differing or not {key.split(".")[0] for key in ours} <= {key.split(".")[0] for key in theirs}:
        facts = ", ".join(f"{key}: {theirs[key]!r}, here {ours[key]!r}" for key in differing)
        raise UserError(f"{place}: the checkpoint is of another run ({facts or 'another kind of recipe'}); remove it")


def check_evaluation(environment: Environment, config: EvaluationConfig, section: str) -> None:
    problems = split_of(environment.task, config, section)
    states = [state for state in map(environment.reset, problems) if state is not None]
    if not states:
        raise UserError(
            f"{section}: all {len(problems)} prompts are longer than the {environment.max_prompt_tokens} tokens "
            "that the model's context has room for"
        )
    requests = [Request(state.prefix_ids, config.max_new_tokens, 0) for state in states]
    try:
        environment.engine.check(requests, config.params())
    except UserError as error:
        raise UserError(f"{section}: {error}") from None


def split_of(task: Task, config: EvaluationConfig, section: str) -> list[Problem]:
    problems = task.split(config.split)[: config.num_problems]
    if not problems:
        hint = "; raise task.num_validation" if config.split == "validation" else ""
        raise UserError(f"{section}.split = {config.split!r} is empty{hint}")
    return problems
