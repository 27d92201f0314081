"""A recipe of any method, from its first line to its last checkpoint; and the evaluation of a recipe's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vineppo.evaluate import Evaluation
from vineppo.methods import METHODS
from vineppo.runs.checkpoint import checkpoint_folders
from vineppo.runs.metrics import Sink
from vineppo.runs.recipe import Recipe
from vineppo.runs.run_folder import CHECKPOINTS
from vineppo.runs.session import Echo, open_session
from vineppo.runs.setup import set_up
from vineppo.types import UserError


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    echo: Echo = print,
    on_start: Callable[[int], None] = lambda total: None,
) -> Path:
    """Runs a recipe of any kind, and returns the folder of its last checkpoint.

    `on_start` is called once with the number of iterations that the log will have.
    """
    with open_session(recipe, folder, resume=resume, sinks=sinks, echo=echo, on_start=on_start) as session:
        if session.is_finished:
            echo(f"{folder}: already done, {session.completed} iterations or steps; a run of them is not begun again")
        else:
            run = next(method.run for method in METHODS.values() if method.Recipe is type(recipe))
            run(session.recipe, session)
            session.finish()
    return checkpoint_folders(folder / CHECKPOINTS)[-1]


def eval_recipe(recipe: Recipe) -> Evaluation:
    """Evaluates the recipe's model on the recipe's task."""
    if not recipe.trains_policy:
        raise UserError(f"{recipe.name}: a recipe of a reward model, which writes no responses to evaluate")
    with set_up(recipe) as setup:
        return setup.evaluate(setup.make_engine())
