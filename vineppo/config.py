"""Recipes: TOML files checked against frozen pydantic models, dotted overrides, and the difference between two."""

from __future__ import annotations

import copy
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vineppo.machine.files import read_text, write_file
from vineppo.types import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

MAX_BYTES, MAX_DEPTH = 1 << 18, 16
"""Of a recipe: far more than any needs, and few enough that no reader of it runs out of time or stack."""
MAX_PROBLEMS, MAX_SHOWN = 5, 120
"""Of an error: mistakes named at once, and characters of a value."""


class Config(BaseModel):
    """Base of every section: frozen, strict (no text for numbers, no true for 1), no text is empty, and a key it does
    not know is an error."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        str_min_length=1,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def lists_are_tuples(cls, values: Any) -> Any:
        """Strict validation takes none for the other, and TOML has lists only."""
        if not isinstance(values, Mapping):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


class Named(Config):
    """A section whose `name` picks the part that it configures."""

    name: str


C = TypeVar("C", bound=Config)


def read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe or a device may have no end
        what = "a folder; name a .toml recipe" if path.is_dir() else "neither a file nor a folder"
        raise UserError(f"{path}: {what if path.exists() else 'no such recipe'}")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 10} KiB, so it is no recipe")
    try:
        return parse_toml(read_text(path).removeprefix("\ufeff"))
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Raises ValueError, TOMLDecodeError among them, with one line."""
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"values nested more than {MAX_DEPTH} deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's own limit
        raise ValueError("a number of thousands of digits") from None
    check_values(tree)
    return tree


def check_values(tree: Mapping[str, Any]) -> None:
    """Raises ValueError for what some TOML reader takes and nothing here could use."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        key = shorten(".".join(map(str, path)))
        if len(path) > MAX_DEPTH:
            raise ValueError(f"{key}: nested more than {MAX_DEPTH} deep")
        if isinstance(value, Mapping):
            waiting += [((*path, name), below) for name, below in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, index), below) for index, below in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{key}: a whole number that 64 bits cannot hold")
        elif isinstance(value, str) and unusable(value):
            raise ValueError(f"{key}: text that is not UTF-8, or has a NUL in it")


def unusable(text: str) -> bool:
    """Whether there is a NUL, which no path has, or half a character, as arguments get from bytes that are no UTF-8."""
    return re.search("[\0\ud800-\udfff]", text) is not None


def write_toml(config: Config, path: Path) -> None:
    """Every value written out, defaults included; None (no value) is left out, as TOML has no word for it."""
    write_file(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`section.key=value` on top of a recipe; the value is TOML, or a plain string where it is not. The last wins."""
    result = copy.deepcopy(dict(tree))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        *sections, key = (part.strip() for part in dotted.split("."))
        if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in (*sections, key)):
            raise UserError(f"override {shorten(repr(override))} is not of the form section.key=value")
        node = result
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"override {shorten(repr(override))}: {section!r} is a value, not a section")
        try:
            node[key] = parse_value(text.strip())
            check_values(result)
        except ValueError as error:
            raise UserError(f"override {shorten(repr(override))}: {error}") from None
    return result


def parse_value(text: str) -> Any:
    try:
        tree = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if tree.keys() == {"value"} else text  # a line break may have begun another key


def validate(model: type[C], tree: Mapping[str, Any], *, source: str, section: str = "") -> C:
    """The checked config, or one line that names the file, the key and what to write there."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [explain(model, problem, section) for problem in error.errors(include_url=False)]
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise UserError(f"{source}: {'; '.join(problems[:MAX_PROBLEMS])}{more}") from None


IN_WORDS = {
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "model_type": "must be a section",
    "string_too_short": "must not be empty",
    "string_type": "must be text, in quotes ('\"...\"' in a shell)",
    "too_short": "has too few valid items",
    "tuple_type": "must be a list, in brackets",
}
"""Where pydantic's own words speak of Python."""


def explain(model: type[BaseModel], problem: Mapping[str, Any], section: str) -> str:
    location = [str(part) for part in problem["loc"]]
    key = shorten(".".join([section, *location] if section else location))
    if problem["type"] == "extra_forbidden":
        known = known_keys(model, location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key!r} is required"
    said = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = IN_WORDS.get(problem["type"], said)
    if isinstance(problem["input"], Mapping) and problem["type"] == "value_error":
        return f"{key}: {message}".removeprefix(": ")  # of a section as a whole
    return f"{key} = {show(problem['input'])}: {message}"


def show(value: Any) -> str:
    return shorten(repr(list(value) if isinstance(value, tuple) else value))


def shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        if part in model.model_fields:  # else it is a name of the user's, as in `rewards.form`
            choices = models_in(model.model_fields[part].annotation)
            if not choices:
                return []
            model = choices[0]
    return list(model.model_fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def diff(left: Config, right: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ; None stands for a key that one side does not have."""
    a, b = flatten(left.model_dump(mode="json")), flatten(right.model_dump(mode="json"))
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}
