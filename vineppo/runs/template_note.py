"""Whether a model is spoken to as it was taught to be spoken to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vineppo.config import read_toml
from vineppo.framing import ChatConfig
from vineppo.runs.changes import last_checkpoint
from vineppo.runs.recipe import Recipe
from vineppo.runs.run_folder import RECIPE
from vineppo.types import UserError


def announce_template(recipe: Recipe, tokenizer: Any) -> str | None:
    """A line where the recipe puts problems to its model otherwise than the run that the model comes from did; or as
    plain text to a model of somebody else's that knows a chat template."""
    name = recipe.model.name
    if name is None:
        return None
    path = Path(last_checkpoint(name)).parent.parent / RECIPE  # of RUN/checkpoints/iteration-000010
    if not path.exists():
        if recipe.chat is not None or not getattr(tokenizer, "chat_template", None):
            return None
        return (
            f"model {name} has a chat template, and this recipe's prompts are plain text: if it is a chat model, add a "
            "[chat] section to the recipe (`vineppo check-task` shows the prompts)"
        )
    before = chat_of(path)
    if before == recipe.chat:
        return None
    theirs, ours = ("without [chat]" if chat is None else f"with [chat] = {chat}" for chat in (before, recipe.chat))
    return f"model {name} was trained {theirs}, and this recipe is {ours}: are the prompts meant to differ?"


def chat_of(path: Path) -> ChatConfig | None:
    """What a recipe says of it; None where it does not, or cannot be read."""
    try:
        table = read_toml(path).get("chat")
        return None if table is None else ChatConfig.model_validate(table)
    except (UserError, ValidationError):
        return None
