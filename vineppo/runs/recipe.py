"""Recipes: one complete TOML file per experiment, checked against the config of every part it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, SerializeAsAny, field_validator

from vineppo.config import Config, Named, show, validate
from vineppo.credit import CREDIT
from vineppo.engine import ENGINES
from vineppo.evaluate import EvaluationConfig
from vineppo.framing import ChatConfig
from vineppo.grading import GradingConfig
from vineppo.learner.config import LearnerConfig
from vineppo.models import ModelConfig
from vineppo.parts import Part, check_members, find_part, full_name, is_own, load_function, load_part, own_code
from vineppo.protocols import CreditEstimator, Engine, LearningEstimator, Task
from vineppo.rollouts import SamplingConfig
from vineppo.runs.checkpoint import CheckpointConfig
from vineppo.runs.metrics import MetricsConfig
from vineppo.tasks import TASKS
from vineppo.thinking import ThinkingConfig
from vineppo.types import UserError

PARTS: dict[str, Mapping[str, Part]] = {"task": TASKS, "engine": ENGINES, "credit": CREDIT}
"""Sections whose `name` picks a part; the part's own Config checks the rest of the section."""
PROTOCOLS: dict[str, type] = {"task": Task, "engine": Engine, "credit": CreditEstimator}

FUNCTIONS = {"task": ("grader", "rewards.*.function")}
"""Keys under which a built-in part takes a function of the user's; * is any name."""
LEARNING = ("update", "save", "load")
"""An estimator that has one of these learns, and needs the rest of LearningEstimator too."""


class Recipe(Config):
    """What every experiment states. A method's own recipe says in class variables what others need to know of it."""

    command: ClassVar[Literal["sft", "train", "prm"]]
    """Of the command line, that runs it."""
    title: ClassVar[str | None] = None
    """On pages; without one it is the estimator's."""
    length: ClassVar[str]
    """The key that says how long a run is."""
    schedule_spans_run: ClassVar[bool] = True
    """Whether one learning-rate schedule reaches over all of it, which then cannot become longer."""
    stepwise: ClassVar[bool] = False
    """Whether an iteration of the log is an optimizer step, of which two seeds may have different numbers."""
    trains_policy: ClassVar[bool] = True
    """Whether what it trains writes responses, which are evaluated; if not, it is a model that scores them."""

    name: str
    """The run's folder is runs/NAME."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    task: SerializeAsAny[Named]
    model: ModelConfig
    engine: SerializeAsAny[Named]
    learner: LearnerConfig
    chat: ChatConfig | None = None
    """Puts problems to the model through its tokenizer's chat template."""
    thinking: ThinkingConfig | None = None
    """For models that think before they answer."""
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

    @property
    def evaluations(self) -> dict[str, EvaluationConfig]:
        """By section, all that a run evaluates."""
        return {"evaluation": self.evaluation}


class SamplingRecipe(Recipe):
    """Of a method that learns from what its own policy writes."""

    sampling: SamplingConfig

    @property
    def num_rounds(self) -> int:
        """Times that the prompts of `sampling` are sampled."""
        return 1

    @property
    def num_vines(self) -> int:
        """From every state that is measured."""
        return 0


R = TypeVar("R", bound=Recipe)


def load_own_parts(tree: Mapping[str, Any], source: str) -> None:
    """Runs the code that a recipe of the user's names; to be called before `make_recipe`, which runs none."""
    for section in PARTS:
        values = tree.get(section)
        name = values.get("name") if isinstance(values, Mapping) else None
        if is_own(name):
            load_part(str(name), f"{source}: {section}.name")
        for key, function in own_functions(section, values):
            load_function(function, f"{source}: {section}.{key}")


def own_functions(section: str, values: Any) -> list[tuple[str, str]]:
    """Key and name of each that the section of a built-in part names."""
    if is_own(isinstance(values, Mapping) and values.get("name")):
        return []
    found = [pair for path in FUNCTIONS.get(section, ()) for pair in values_at(values, path.split("."))]
    return [(key, name) for key, name in found if is_own(name)]


def values_at(tree: Any, path: Sequence[str], key: str = "") -> Iterator[tuple[str, Any]]:
    if not path:
        yield key, tree
    elif isinstance(tree, Mapping):
        for name in tree if path[0] == "*" else tree.keys() & path[:1]:
            yield from values_at(tree[name], path[1:], f"{key}.{name}".removeprefix("."))


def is_own_task(config: Named) -> bool:
    """Whether any of it is code of the user's, which has to be looked at before it is relied on."""
    return is_own(config.name) or bool(own_functions("task", config.model_dump()))


def make_recipe(tree: Mapping[str, Any], *, kind: type[R], source: str) -> R:
    """The checked recipe; raises UserError with one line naming the source and the key."""
    sections = {
        name: read_section(name, tree[name], source) for name in PARTS if name in tree and name in kind.model_fields
    }
    return validate(kind, {**tree, **sections}, source=source)


def read_section(section: str, values: Any, source: str) -> Named:
    """The config of the part that the section's `name` picks."""
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: {section} = {show(values)}: must be a section")
    if "name" not in values:
        raise UserError(f"{source}: {section}.name must be one of {', '.join(map(repr, PARTS[section]))}")
    name = full_name(values["name"])
    part = find_part(name, PARTS[section], f"{source}: {section}.name")
    with own_code(f"{source}: {section}") if is_own(name) else nullcontext():
        return validate(part.Config, {**values, "name": name}, source=source, section=section)


def make_part(section: str, config: Named, *args: Any, **kwargs: Any) -> Any:
    """What a section of a recipe asks for."""
    kind = find_part(config.name, PARTS[section], f"{section}.name")
    if not is_own(config.name):
        return kind(config, *args, **kwargs)
    key = f"{section}.name = {config.name}"
    with own_code(key):
        part = kind(config, *args, **kwargs)
        check_members(part, PROTOCOLS[section], key)
        if section == "credit" and any(hasattr(part, name) for name in LEARNING):
            check_members(part, LearningEstimator, key)
    return part
