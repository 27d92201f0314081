"""Recipes: one complete TOML file per experiment, checked against the config of every part it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SerializeAsAny, model_validator

from vineppo.checkpoint import CheckpointConfig
from vineppo.config import Config, apply_overrides, read_toml, validate
from vineppo.credit import CREDIT
from vineppo.dpo import DPOConfig
from vineppo.engine import ENGINES
from vineppo.evaluate import EvaluationConfig
from vineppo.learner import LearnerConfig
from vineppo.metrics import MetricsConfig
from vineppo.models import TinyModelConfig
from vineppo.restem import RestEMConfig
from vineppo.rollouts import SamplingConfig
from vineppo.sft import SFTConfig
from vineppo.tasks import TASKS
from vineppo.tasks.grading import GradingConfig
from vineppo.train import TrainConfig
from vineppo.types import UserError

CHOICES: dict[str, Mapping[str, Any]] = {"task": TASKS, "engine": ENGINES, "credit": CREDIT}
"""Sections whose `name` picks a class; the class's own Config checks the rest of the section."""


class ModelConfig(Config):
    """Where the first policy comes from: an existing model, or random weights over the embedded task's characters."""

    name: str | None = None
    """Hugging Face hub name, local folder, GGUF file, or a finished run's folder: its last checkpoint."""
    from_scratch: TinyModelConfig | None = None
    checksum: str | None = None
    """Of a local model's weights: others are refused. A run writes it into its own recipe.toml."""

    @model_validator(mode="after")
    def exactly_one(self) -> ModelConfig:
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give either name (a hub name, folder or GGUF file) or a [model.from_scratch] section")
        return self


class Recipe(Config):
    """What every experiment states."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """The run's folder is runs/NAME."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    task: SerializeAsAny[Config]
    model: ModelConfig
    engine: SerializeAsAny[Config]
    learner: LearnerConfig
    grading: GradingConfig = GradingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()


class SFTRecipe(Recipe):
    """For `vineppo sft`."""

    sft: SFTConfig


class TrainRecipe(Recipe):
    """For `vineppo train`."""

    sampling: SamplingConfig
    credit: SerializeAsAny[Config]
    train: TrainConfig


class RestEMRecipe(Recipe):
    """For `vineppo train`, with a [restem] section."""

    sampling: SamplingConfig
    restem: RestEMConfig


class DPORecipe(Recipe):
    """For `vineppo train`, with a [dpo] section."""

    sampling: SamplingConfig
    dpo: DPOConfig


R = TypeVar("R", bound=Recipe)

KINDS: dict[str, type[Recipe]] = {"sft": SFTRecipe, "restem": RestEMRecipe, "dpo": DPORecipe, "train": TrainRecipe}
"""The section that only recipes of this kind have; a file with none of them is checked as a TrainRecipe."""


def kind_of(tree: Mapping[str, Any]) -> type[Recipe]:
    return next((kind for section, kind in KINDS.items() if section in tree), TrainRecipe)


def load_any_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of whatever kind its sections say."""
    return load_recipe(path, overrides, kind=kind_of(read_toml(path)))


def load_recipe(path: Path, overrides: Sequence[str] = (), *, kind: type[R] = TrainRecipe) -> R:
    """The checked recipe; raises UserError with one line naming the file and the key."""
    return make_recipe(apply_overrides(read_toml(path), overrides), kind=kind, source=str(path))


def make_recipe(tree: Mapping[str, Any], *, kind: type[R], source: str) -> R:
    sections = {
        name: choose(name, tree[name], source) for name in CHOICES if name in tree and name in kind.model_fields
    }
    return validate(kind, {**tree, **sections}, source=source)


def choose(section: str, values: Any, source: str) -> Config:
    choices = CHOICES[section]
    name = values.get("name", "") if isinstance(values, Mapping) else ""
    if not isinstance(name, str) or name not in choices:
        raise UserError(f"{source}: {section}.name = {name!r}: must be one of {', '.join(map(repr, choices))}")
    return validate(choices[name].Config, values, source=source, section=section)
