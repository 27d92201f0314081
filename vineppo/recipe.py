"""Recipes: one complete TOML file per experiment, checked against the config of every part it names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from vineppo.checkpoint import CheckpointConfig
from vineppo.config import Config, apply_overrides, read_toml, show, validate
from vineppo.credit import CREDIT
from vineppo.credit.grpo import GRPOConfig
from vineppo.credit.rloo import RLOOConfig
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

    name: str
    """The run's folder is runs/NAME."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    task: SerializeAsAny[Config]
    model: ModelConfig
    engine: SerializeAsAny[Config]
    learner: LearnerConfig
    grading: GradingConfig = GradingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()

    @field_validator("name")
    @classmethod
    def names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("must be 1 to 100 of A-Z a-z 0-9 . _ - and begin with no point; the folder is runs/NAME")
        return name


class SFTRecipe(Recipe):
    """For `vineppo sft`."""

    sft: SFTConfig


class TrainRecipe(Recipe):
    """For `vineppo train`."""

    sampling: SamplingConfig
    credit: SerializeAsAny[Config]
    train: TrainConfig

    @model_validator(mode="after")
    def something_to_compare(self) -> TrainRecipe:
        credit = self.credit
        if not isinstance(credit, GRPOConfig | RLOOConfig):
            return self
        if self.sampling.group_size < 2:
            raise ValueError(
                f"sampling.group_size = {self.sampling.group_size} leaves {credit.name} nothing to compare a "
                "response with, so that all advantages are 0; give at least 2"
            )
        if self.train.advantage_norm == "minibatch" and self.train.minibatch_size == 1:
            raise ValueError(
                'train.advantage_norm = "minibatch" with minibatch_size = 1 whitens a response by itself, whose tokens '
                f'all have one advantage under {credit.name}, to 0; set advantage_norm = "iteration" or "off"'
            )
        return self


class RestEMRecipe(Recipe):
    """For `vineppo train`, with a [restem] section."""

    sampling: SamplingConfig
    restem: RestEMConfig


class DPORecipe(Recipe):
    """For `vineppo train`, with a [dpo] section."""

    sampling: SamplingConfig
    dpo: DPOConfig

    @model_validator(mode="after")
    def a_pair_is_two_responses(self) -> DPORecipe:
        if self.sampling.group_size < 2:
            raise ValueError("sampling.group_size = 1: a pair needs 2 or more responses to a prompt")
        return self


R = TypeVar("R", bound=Recipe)

KINDS: dict[str, type[Recipe]] = {"sft": SFTRecipe, "restem": RestEMRecipe, "dpo": DPORecipe, "train": TrainRecipe}
"""The section that only recipes of this kind have."""


def kind_of(tree: Mapping[str, Any], source: str = "recipe") -> type[Recipe]:
    """Raises UserError where no section says it, or two do."""
    said = [section for section in KINDS if section in tree]
    if len(said) != 1:
        which = " and ".join(f"[{section}]" for section in said) or "none"
        raise UserError(
            f"{source}: one of [sft], [train], [restem] and [dpo] says what kind of recipe it is; got {which}"
        )
    return KINDS[said[0]]


def load_any_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of whatever kind its sections say."""
    tree = apply_overrides(read_toml(path), overrides)
    return make_recipe(tree, kind=kind_of(tree, str(path)), source=str(path))


def load_recipe(path: Path, overrides: Sequence[str] = (), *, kind: type[R] = TrainRecipe) -> R:
    """The checked recipe; raises UserError with one line naming the file and the key."""
    return make_recipe(apply_overrides(read_toml(path), overrides), kind=kind, source=str(path))


def make_recipe(tree: Mapping[str, Any], *, kind: type[R], source: str) -> R:
    sections = {
        name: choose(name, tree[name], source) for name in CHOICES if name in tree and name in kind.model_fields
    }
    return validate(kind, {**tree, **sections}, source=source)


def choose(section: str, values: Any, source: str) -> Config:
    """The class that the section's `name` picks, with the rest of the section in its Config."""
    choices = CHOICES[section]
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: {section} = {show(values)}: must be a section")
    name = values.get("name")
    if not isinstance(name, str) or name not in choices:
        said = f"{section}.name = {show(name)}:" if "name" in values else f"{section}.name"
        raise UserError(f"{source}: {said} must be one of {', '.join(map(repr, choices))}")
    return validate(choices[name].Config, values, source=source, section=section)
