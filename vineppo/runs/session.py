"""A session: what a recipe says becomes parts, in a folder that can be resumed and read.

runs/NAME/ holds recipe.toml, environment.json, metrics.jsonl, timings.jsonl, checkpoints/, rollouts/ and result.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vineppo.config import read_toml, write_toml
from vineppo.environment import Environment
from vineppo.evaluate import Evaluation, EvaluationConfig, evaluate
from vineppo.learner.policy import PolicyLearner
from vineppo.machine import runtime
from vineppo.machine.files import write_json
from vineppo.machine.tensor_files import save_tensors
from vineppo.models.loading import load_policy_model
from vineppo.models.make import make_symbol_tokenizer, make_tiny_model, save_model
from vineppo.runs.changes import (
    LENGTHS,
    Changes,
    architecture,
    check_weights,
    continued,
    deciding,
    last_checkpoint,
    settle,
)
from vineppo.runs.checkpoint import (
    PROGRESS,
    STATE,
    Checkpoint,
    checkpoint_folders,
    iteration_of,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from vineppo.runs.estimate import announce_days, check_sizes
from vineppo.runs.lock import lock_folder
from vineppo.runs.metrics import MetricsLog, Sink, mend_logs
from vineppo.runs.recipe import Recipe, make_part, make_recipe
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
from vineppo.runs.shutdown import Shutdown
from vineppo.seeding import derive_seed
from vineppo.tasks.grading import Grader
from vineppo.types import Engine, Learner, Problem, Request, SamplingParams, Task, UserError

R = TypeVar("R", bound=Recipe)

Say = Callable[[str], None]

OnStart = Callable[[int], None]  # told how many iterations the log will have


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
    owes_line: bool
    """The checkpoint's iteration is learnt, but not evaluated where that was due, and not in the log."""
    is_finished: bool
    """There is nothing left to do."""

    def rollouts_file(self, iteration: int) -> Path:
        return self.folder / ROLLOUTS / f"iteration-{iteration:06d}.jsonl.gz"

    @property
    def completed(self) -> int:
        """Iterations (optimizer steps, for SFT) that the checkpoint holds."""
        return self.checkpoint.iteration if self.checkpoint else 0

    def make_engine(self) -> Engine:
        section = self.recipe.engine
        return make_part("engine", section, self.policy, self.tokenizer)

    def make_learner(self, reference: Any, *, sampling: SamplingParams, total_steps: int) -> PolicyLearner:
        learner = PolicyLearner(self.recipe.learner, self.policy, reference, sampling=sampling, total_steps=total_steps)
        if self.checkpoint:
            learner.load(self.checkpoint.folder)
        return learner

    def load_initial_policy(self) -> Any:
        """The model that training started from, wherever it is now."""
        return load_policy(self.recipe, self.task)[1]

    def make_environment(self, engine: Engine, params: SamplingParams, max_prompt_tokens: int | None) -> Environment:
        longest = longest_prompt(self.policy)
        return Environment(
            engine, self.task, self.grader, self.tokenizer, params, min(max_prompt_tokens or longest, longest)
        )

    def check_evaluation(
        self, engine: Engine, config: EvaluationConfig | None = None, section: str = "evaluation"
    ) -> None:
        """What would end an evaluation must not wait for it: it is found before the first step."""
        config = config or self.recipe.evaluation
        environment = self.make_environment(engine, config.params(), None)
        problems = split_of(self.task, config, section)
        states = [state for state in map(environment.reset, problems) if state is not None]
        if not states:
            raise UserError(
                f"{section}: all {len(problems)} prompts are longer than the {environment.max_prompt_tokens} tokens "
                "that the model's context has room for"
            )
        requests = [Request(state.prefix_ids, config.max_new_tokens, 0) for state in states]
        try:
            engine.check(requests, config.params())
        except UserError as error:
            raise UserError(f"{section}: {error}") from None

    def evaluate(self, engine: Engine, iteration: int, learner: Learner) -> None:
        """Into the log, and into result.json, which holds the latest one."""
        with self.log.phase("evaluate"):
            evaluation = self._evaluate(engine)
            self.log.add(learner.divergence(evaluation.first_samples))
        self.log.add(evaluation.metrics())
        self._write_result(evaluation, iteration)

    def _evaluate(self, engine: Engine) -> Evaluation:
        config = self.recipe.evaluation
        environment = self.make_environment(engine, config.params(), None)
        return evaluate(environment, config, seed=derive_seed(self.recipe.seed, "evaluation"))

    def _write_result(self, evaluation: Evaluation, iteration: int) -> None:
        told = {"recipe": self.recipe.name, "seed": self.recipe.seed, "iteration": iteration}
        write_json(self.folder / RESULT, evaluation.to_json() | told)

    def finish(self) -> None:
        """Marks the run as complete, for whoever compares runs. A result that was lost is measured again."""
        iteration = iteration_of(checkpoint_folders(self.folder / CHECKPOINTS)[-1])
        result = read_result(self.folder)
        if result.get("iteration") != iteration or "pass@1" not in result:
            self._write_result(self._evaluate(self.make_engine()), iteration)
        write_json(self.folder / RESULT, read_result(self.folder) | {"finished": True})

    def take_up_line(self) -> bool:
        """Puts what the checkpoint knows of the line that is owed into the log; whether there is one."""
        if self.owes_line and self.checkpoint:
            self.log.add(self.checkpoint.progress["pending"])
        return self.owes_line

    def must_save(self, iteration: int, last: int) -> bool:
        """A checkpoint goes before every evaluation too, so that nothing that happens in there loses training."""
        recipe = self.recipe
        return due(recipe.checkpoint.every, iteration, last) or due(recipe.evaluation.every, iteration, last)

    def save(
        self,
        iteration: int,
        learner: Learner | None,
        *,
        pending: dict[str, Any] | None = None,
        save_more: Callable[[Path], None] = lambda folder: None,
        **progress: Any,
    ) -> None:
        """Without a learner where the run goes on with a fresh one. `progress` comes back with the checkpoint.

        `pending` is what the log has of this iteration where its line is yet to be written.
        """
        told = {"recipe": deciding(self.recipe), "architecture": architecture(self.policy), "pending": pending}

        def save_parts(folder: Path) -> None:
            save_model(self.policy, self.tokenizer, folder)
            if learner:
                learner.save(folder)
            else:
                save_tensors({}, folder / STATE)
            save_more(folder)

        with self.log.phase("checkpoint"):
            save_checkpoint(
                self.folder / CHECKPOINTS,
                save_parts=save_parts,
                expected_bytes=(3 if learner else 1) * sum(p.nbytes for p in self.policy.parameters()),
                progress={"iteration": iteration, "seed": self.recipe.seed, **progress, **told},
                config=self.recipe.checkpoint,
            )


@contextmanager
def open_session(recipe: Recipe, folder: Path, *, resume: bool, sinks: Sequence[Sink], say: Say) -> Iterator[Session]:
    check_sizes(recipe)
    refuse_foreign(folder)
    with lock_folder(folder, say):
        recipe, changes = find_run(folder, recipe, resume=resume)
        remove_leftovers(folder)
        checkpoint = load_checkpoint(folder / CHECKPOINTS, say)
        if checkpoint:
            check_checkpoint(checkpoint, recipe)
            prune(folder / CHECKPOINTS, recipe.checkpoint, newest=checkpoint.iteration)  # a kill may have come first
        task = make_part("task", recipe.task)
        split_of(task, recipe.evaluation, "evaluation")
        tokenizer, policy = load_policy(recipe, task, checkpoint)
        if checkpoint and architecture(policy) != checkpoint.progress["architecture"]:
            raise UserError(f"{checkpoint.folder}: holds another model than it was saved with; remove the checkpoint")
        is_finished = is_done(folder, checkpoint) and not changes.keys() & LENGTHS
        if not is_finished:
            keep_recipe(folder, recipe, changes, say)
            if days := announce_days(recipe):
                say(days)
        iteration, pending = (checkpoint.iteration, checkpoint.progress["pending"]) if checkpoint else (0, None)
        owes_line = mend_logs(folder, iteration, may_owe=pending is not None, say=say)
        with (
            Shutdown(say).installed() as shutdown,
            Grader(task, recipe.grading) as grader,
            MetricsLog(folder, recipe.metrics, sinks) as log,
        ):
            yield Session(
                folder, recipe, checkpoint, task, tokenizer, policy, grader, log, shutdown, owes_line, is_finished
            )


def find_run(folder: Path, recipe: R, *, resume: bool) -> tuple[R, Changes]:
    """The recipe that runs in this folder, with the weights that it begins or began with, and what is new in it."""
    if not resume:
        if holds_a_run(folder):
            raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another --out")
        return recipe.model_copy(update={"model": settle(recipe.model)}), {}
    if not (folder / RECIPE).exists():
        raise UserError(f"{folder}: no run to resume")
    return continued(
        make_recipe(read_toml(folder / RECIPE), kind=type(recipe), source=str(folder / RECIPE)), recipe, folder
    )


def keep_recipe(folder: Path, recipe: Recipe, changes: Changes, say: Say) -> None:
    """In the folder of a run that begins, or that goes on with changes."""
    for key, (old, new) in changes.items():
        say(f"{folder}: {key} was {old!r} and is {new!r} from here on")
    if changes and finished_iteration(folder) is not None:  # before the recipe, which says that there is more to do
        write_json(folder / RESULT, {key: value for key, value in read_result(folder).items() if key != "finished"})
    if changes or not (folder / CHECKPOINTS).exists():
        write_toml(recipe, folder / RECIPE)
    if not (folder / ENVIRONMENT).exists():
        write_json(folder / ENVIRONMENT, runtime.environment(runtime.pick_device(recipe.device)))


def is_done(folder: Path, checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and finished_iteration(folder) == checkpoint.iteration


def check_checkpoint(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raises UserError where it is of another run."""
    place = checkpoint.folder / PROGRESS
    for key, kinds in {"recipe": (dict,), "architecture": (str,), "pending": (dict, type(None))}.items():
        if not isinstance(checkpoint.progress.get(key, 0), kinds):
            raise UserError(f"{place}: {key!r} is missing or damaged, so it is no checkpoint of this run; remove it")
    ours, theirs = deciding(recipe), checkpoint.progress["recipe"]
    differing = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if differing or not {key.split(".")[0] for key in ours} <= {key.split(".")[0] for key in theirs}:
        told = ", ".join(f"{key}: {theirs[key]!r}, here {ours[key]!r}" for key in differing) or "another kind of recipe"
        raise UserError(f"{place}: the checkpoint is of another run ({told}); remove it")


def split_of(task: Task, config: EvaluationConfig, section: str) -> list[Problem]:
    problems = task.split(config.split)[: config.num_problems]
    if not problems:
        hint = "; raise task.num_validation" if config.split == "validation" else ""
        raise UserError(f"{section}.split = {config.split!r} is empty{hint}")
    return problems


def load_policy(recipe: Recipe, task: Task, checkpoint: Checkpoint | None = None) -> tuple[Any, Any]:
    """(tokenizer, model) with fp32 master weights: the recipe's model, or the checkpoint's where there is one."""
    device = runtime.pick_device(recipe.device)
    if checkpoint or recipe.model.name is not None:
        if not checkpoint:
            check_weights(recipe.model)
        source = str(checkpoint.folder) if checkpoint else last_checkpoint(str(recipe.model.name))
        return load_policy_model(source, device=device)
    assert recipe.model.from_scratch is not None
    symbols = getattr(task, "symbols", None)
    if symbols is None:
        raise UserError(f"task {recipe.task.name} does not list its symbols, so give model.name, not from_scratch")
    tokenizer = make_symbol_tokenizer(symbols)
    model = make_tiny_model(tokenizer, recipe.model.from_scratch, derive_seed(recipe.seed, "init"))
    return tokenizer, model.to(device)  # type: ignore[arg-type]


def longest_prompt(model: Any) -> int:
    """In tokens, with room for one more."""
    return (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - 1


def machine() -> dict[str, float]:
    return {"memory/peak_mb": runtime.peak_memory_mb()}


def due(every: int, iteration: int, last: int) -> bool:
    """Every so many iterations, and at the end."""
    return iteration == last or (every > 0 and iteration % every == 0)
