"""Methods: METHODS maps the section that only recipes of a method have to the recipe and what runs it.

A method is one file: its knobs, its recipe, its run. epochs.py is the loop of those whose data are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vineppo.config import apply_overrides, read_toml
from vineppo.methods.dpo import DPORecipe, run_dpo
from vineppo.methods.prm import PRMRecipe, run_prm
from vineppo.methods.restem import RestEMRecipe, run_restem
from vineppo.methods.sft import SFTRecipe, run_sft
from vineppo.methods.train import TrainRecipe, run_train
from vineppo.parts import run_around
from vineppo.runs.recipe import Recipe, load_own_parts, make_recipe
from vineppo.types import UserError

R = TypeVar("R", bound=Recipe)


class Method(NamedTuple):
    Recipe: type[Recipe]
    run: Callable[[Any, Any], None]
    """(recipe, session): makes the parts, from the session's checkpoint where there is one, and trains."""


METHODS = {
    "sft": Method(SFTRecipe, run_sft),
    "train": Method(TrainRecipe, run_train),
    "restem": Method(RestEMRecipe, run_restem),
    "dpo": Method(DPORecipe, run_dpo),
    "prm": Method(PRMRecipe, run_prm),
}


def kind_of(tree: Mapping[str, Any], source: str = "recipe") -> type[Recipe]:
    """Raises UserError where no section says it, or two do."""
    said = [section for section in METHODS if section in tree]
    if len(said) != 1:
        which = " and ".join(f"[{section}]" for section in said) or "none"
        *first, last = (f"[{section}]" for section in METHODS)
        known = f"{', '.join(first)} and {last}"
        raise UserError(f"{source}: one of {known} says what kind of recipe it is; got {which}")
    return METHODS[said[0]].Recipe


def load_recipe(path: Path, overrides: Sequence[str] = (), *, kind: type[R] = Recipe) -> R:
    """The checked recipe, of whatever kind its sections say; raises UserError where that is not `kind`.

    Own parts that it names are loaded. Of a recipe that lies in a run's folder only what the overrides name is.
    """
    stored = read_toml(path)
    tree = apply_overrides(stored, overrides)
    load_own_parts(apply_overrides({}, overrides) if run_around(path) else tree, str(path))
    recipe = make_recipe(tree, kind=kind_of(tree, str(path)), source=str(path))
    if not isinstance(recipe, kind):
        raise UserError(f"{path}: a {type(recipe).__name__}, where a {kind.__name__} is needed")
    return recipe
