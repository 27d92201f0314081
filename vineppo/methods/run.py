"""A recipe of any method, from its first line to its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vineppo.environment import Environment
from vineppo.evaluate import Evaluation, evaluate
from vineppo.grading import Grader
from vineppo.methods import METHODS
from vineppo.runs.checkpoint import checkpoint_folders
from vineppo.runs.metrics import Sink
from vineppo.runs.recipe import Recipe, make_part
from vineppo.runs.run_folder import CHECKPOINTS
from vineppo.runs.session import OnStart, Say, load_policy, longest_prompt, open_session
from vineppo.seeding import derive_seed


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
            run = next(method.run for method in METHODS.values() if method.Recipe is type(recipe))
            run(session.recipe, session, on_start)
            session.finish()
    return checkpoint_folders(folder / CHECKPOINTS)[-1]


def eval_recipe(recipe: Recipe) -> Evaluation:
    """Evaluates the recipe's model on the recipe's task."""
    task = make_part("task", recipe.task)
    tokenizer, model = load_policy(recipe, task)
    engine = make_part("engine", recipe.engine, model, tokenizer)
    with Grader(task, recipe.grading) as grader:
        environment = Environment(engine, task, grader, tokenizer, recipe.evaluation.params(), longest_prompt(model))
        return evaluate(environment, recipe.evaluation, seed=derive_seed(recipe.seed, "evaluation"))
