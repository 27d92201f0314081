"""Recipes: TOML files checked against frozen pydantic models, dotted overrides, and the difference between two."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from vineppo.files import write_file
from vineppo.types import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


class Config(BaseModel):
    """Base of every section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


C = TypeVar("C", bound=Config)


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a .toml recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def write_toml(config: Config, path: Path) -> None:
    """Every value written out, defaults included; None (no value) is left out, as TOML has no word for it."""
    write_file(path, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`section.key=value` on top of a recipe; the value is TOML, or a plain string where it is not."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise UserError(f"override {override!r} is not of the form section.key=value")
        *sections, key = dotted.strip().split(".")
        node = result
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise UserError(f"override {override!r}: {section!r} is a value, not a section")
        node[key] = parse_value(text.strip())
    return result


def parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validate(model: type[C], tree: Mapping[str, Any], *, source: str, section: str = "") -> C:
    """The checked config, or one line that names the file, the key and what to write there."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(explain(model, problem, section) for problem in error.errors())
        raise UserError(f"{source}: {problems}") from None


def explain(model: type[BaseModel], problem: Mapping[str, Any], section: str) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join([section, *location] if section else location)
    if problem["type"] == "extra_forbidden":
        known = known_keys(model, location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key!r} is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if location else f"{key}: {message}".removeprefix(": ")


def known_keys(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        choices = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not choices:
            return []
        model = choices[0]
    return list(model.model_fields)


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
