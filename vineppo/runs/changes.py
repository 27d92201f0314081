"""What may differ between a recipe and the run that goes on with it; and which weights a run began with, for good."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vineppo.config import diff, flatten
from vineppo.models import ModelConfig
from vineppo.runs.checkpoint import checkpoint_folders, checksum
from vineppo.runs.recipe import Recipe
from vineppo.runs.run_folder import CHECKPOINTS, RECIPE, finished_iteration
from vineppo.seeding import derive_seed
from vineppo.types import UserError

R = TypeVar("R", bound=Recipe)

FREE = ("evaluation.", "metrics.", "checkpoint.", "grading.num_workers")
"""Sections and keys that decide nothing of what is learnt."""

Changes = Mapping[str, tuple[Any, Any]]


def changes(stored: Recipe, recipe: Recipe) -> Changes:
    """Dotted keys whose values differ. What a run has noted about its model is no difference."""
    found = diff(stored, recipe)
    if recipe.model.checksum is None:
        found.pop("model.checksum", None)
    if is_checkpoint_of(stored.model.name, recipe.model.name):
        found.pop("model.name", None)
    return found


def is_checkpoint_of(checkpoint: str | None, run: str | None) -> bool:
    return bool(checkpoint and run) and Path(str(checkpoint)).parent == Path(str(run)) / CHECKPOINTS


def continued(stored: R, recipe: R, folder: Path) -> tuple[R, Changes]:
    """The recipe that the run goes on with, from the model it began with; raises UserError where it would be another
    run."""
    found = changes(stored, recipe)
    refusals = [
        f"{key}: {old!r} -> {new!r}{why}"
        for key, (old, new) in found.items()
        if (why := refusal(recipe, key, old, new)) is not None
    ]
    if refusals:
        raise changed_recipe(folder, refusals)
    return recipe.model_copy(update={"model": stored.model}), found


def changed_recipe(folder: Path, found: Sequence[str]) -> UserError:
    """`found` are changes that make another run of it."""
    return UserError(
        f"{folder}: the recipe has changed since this run began ({'; '.join(found)}); choose another --out"
    )


def refusal(recipe: Recipe, key: str, old: Any, new: Any) -> str | None:
    """Why this may not change; empty where that goes without saying."""
    if key.startswith(FREE):
        return None
    if key != recipe.length:
        return ""
    if new < old:
        return ", but a run only gets longer"
    if not recipe.schedule_spans_run:
        return None
    for name, value in flatten(recipe.model_dump(mode="json")).items():
        if (name.endswith("optim.schedule") and value != "constant") or (name.endswith("optim.warmup_ratio") and value):
            return f", but {name} = {value!r} depends on how long the run is"
    return None


def deciding(recipe: Recipe) -> dict[str, Any]:
    """By dotted key all that decides what is learnt, but for how long. A checkpoint carries it."""
    flat = flatten(recipe.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if not key.startswith(FREE) and key != recipe.length}


def architecture(model: Any) -> str:
    """A digest of all parameters' names and shapes."""
    shapes = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
    return f"{derive_seed(*shapes):016x}"


def settle(model: ModelConfig) -> ModelConfig:
    """Names the very weights a run begins with: a finished run's last checkpoint for its folder, and their checksum.

    So the run cannot go on from others, whatever becomes of that folder.
    """
    if model.name is None:
        return model
    name = model.name
    if names_a_run(name):
        if finished_iteration(Path(name)) is None:
            raise UserError(f"model {name}: this run is not finished; continue it, or name one of its checkpoints")
        name = last_checkpoint(name)
    settled = ModelConfig(name=name, checksum=model.checksum or weights_checksum(name))
    check_weights(settled)
    return settled


def check_weights(model: ModelConfig) -> None:
    if model.checksum is not None and weights_checksum(str(model.name)) != model.checksum:
        raise UserError(
            f"model {model.name}: not the weights that model.checksum names; put those back, or choose another --out"
        )


def weights_checksum(name: str) -> str | None:
    """Of the files of weights; None for a name on the hub."""
    path = Path(name).expanduser()
    if path.is_file():
        files = [path]
    else:
        files = sorted(file for kind in ("safetensors", "gguf", "bin") for file in path.glob(f"*.{kind}"))
    digests = [checksum_of(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{derive_seed(*digests):016x}" if digests else None


@functools.lru_cache
def checksum_of(file: Path, size: int, changed_ns: int) -> str:
    """Read once in a process, however often the model is loaded."""
    return checksum(file)


def names_a_run(name: str) -> bool:
    return (Path(name) / RECIPE).exists()


def last_checkpoint(name: str) -> str:
    """A model's name, or for the folder of a run the model it ended with."""
    if not names_a_run(name):
        return name
    folders = checkpoint_folders(Path(name) / CHECKPOINTS)
    if not folders:
        raise UserError(f"model {name}: this run has no checkpoint yet")
    return str(folders[-1])
