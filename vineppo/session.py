"""A session: what a recipe says becomes parts, in a folder that can be resumed and read.

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
from vineppo.engine import ENGINES
from vineppo.environment import Environment
from vineppo.evaluate import evaluate
from vineppo.learner import PolicyLearner
from vineppo.loading import load_policy_model
from vineppo.metrics import METRICS, MetricsLog, Sink
from vineppo.models import make_symbol_tokenizer, make_tiny_model, save_model
from vineppo.recipe import Recipe, load_recipe
from vineppo.seeding import derive_seed
from vineppo.shutdown import Shutdown
from vineppo.tasks import TASKS
from vineppo.tasks.grading import Grader
from vineppo.types import Engine, SamplingParams, Task, UserError

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

    def rollouts_file(self, iteration: int) -> Path:
        return self.folder / "rollouts" / f"iteration-{iteration:06d}.jsonl.gz"

    @property
    def completed(self) -> int:
        """Iterations (optimizer steps, for SFT) that the checkpoint holds."""
        return self.checkpoint.iteration if self.checkpoint else 0

    def make_engine(self) -> Engine:
        section = self.recipe.engine
        return ENGINES[section.name](section, self.policy, self.tokenizer)  # type: ignore[attr-defined]

    def make_learner(self, reference: Any, *, sampling: SamplingParams, total_steps: int) -> PolicyLearner:
        learner = PolicyLearner(self.recipe.learner, self.policy, reference, sampling=sampling, total_steps=total_steps)
        if self.checkpoint:
            learner.load_trainer_state(self.checkpoint.state["learner"])
        return learner

    def load_initial_policy(self) -> Any:
        """The model that training started from, wherever it is now."""
        return load_policy(self.recipe, self.task)[1]

    def make_environment(self, engine: Engine, params: SamplingParams, max_prompt_tokens: int | None) -> Environment:
        longest = longest_prompt(self.policy)
        return Environment(
            engine, self.task, self.grader, self.tokenizer, params, min(max_prompt_tokens or longest, longest)
        )

    def evaluate(self, engine: Engine, iteration: int, learner: PolicyLearner) -> None:
        """Into the log, and into result.json, which holds the latest one."""
        config = self.recipe.evaluation
        with self.log.phase("evaluate"):
            environment = self.make_environment(engine, config.params(), None)
            evaluation = evaluate(environment, config, seed=derive_seed(self.recipe.seed, "evaluation"))
            self.log.add(learner.divergence(evaluation.first_samples))
        self.log.add(evaluation.metrics())
        told = {"recipe": self.recipe.name, "seed": self.recipe.seed, "iteration": iteration}
        (self.folder / "result.json").write_text(json.dumps(evaluation.to_json() | told, indent=1) + "\n")

    def finish(self) -> None:
        """Marks the run as complete, for whoever compares runs."""
        path = self.folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": True}, indent=1) + "\n")

    def save(
        self,
        iteration: int,
        learner: PolicyLearner | None,
        *,
        save_more: Callable[[Path], None] = lambda folder: None,
        **progress: Any,
    ) -> None:
        """Without a learner where the run goes on with a fresh one. `progress` comes back with the checkpoint."""

        def save_models(folder: Path) -> None:
            save_model(self.policy, self.tokenizer, folder)
            save_more(folder)

        with self.log.phase("checkpoint"):
            save_checkpoint(
                self.folder / "checkpoints",
                save_models=save_models,
                state={"learner": learner.trainer_state()} if learner else {},
                progress={"iteration": iteration, "seed": self.recipe.seed, **progress},
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
    source = str(checkpoint.folder) if checkpoint else last_checkpoint(recipe.model.name)
    if source is not None:
        return load_policy_model(source, device=device)
    assert recipe.model.from_scratch is not None
    symbols = getattr(task, "symbols", None)
    if symbols is None:
        raise UserError(f"task {recipe.task.name} does not list its symbols, so give model.name, not from_scratch")  # type: ignore[attr-defined]
    tokenizer = make_symbol_tokenizer(symbols)
    model = make_tiny_model(tokenizer, recipe.model.from_scratch, derive_seed(recipe.seed, "init"))
    return tokenizer, model.to(device)  # type: ignore[arg-type]


def last_checkpoint(name: str | None) -> str | None:
    """A model's name, or for the folder of a run the model it ended with."""
    if name is None or not (Path(name) / "recipe.toml").exists():
        return name
    folders = checkpoint_folders(Path(name) / "checkpoints")
    if not folders:
        raise UserError(f"model {name}: this run has no checkpoint yet")
    return str(folders[-1])


def longest_prompt(model: Any) -> int:
    """In tokens, with room for one more."""
    return (getattr(model.config, "max_position_embeddings", None) or sys.maxsize) - 1


def machine() -> dict[str, float]:
    return {"memory/peak_mb": runtime.peak_memory_mb()}


def due(every: int, iteration: int, last: int) -> bool:
    """Every so many iterations, and at the end."""
    return iteration == last or (every > 0 and iteration % every == 0)
