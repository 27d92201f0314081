"""Parts that a recipe names: built-in ones, and anybody's own as path/to/file.py:Class or package.module:Class.

A part is a class with a `Config`, whose fields are the knobs of its section of the recipe; it is made by calling it
with that config first. An own file is run when the recipe is read. One that lies in a run's folder is refused: it may
have come with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from vineppo.config import Named, show
from vineppo.types import UserError


class Part(Protocol):
    @property
    def Config(self) -> Any: ...  # noqa: N802 (a subclass of Named)

    def __call__(self, config: Any, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class Deferred:
    """A built-in part whose module needs torch: the knobs are here at once, the class is imported when it is made."""

    Config: Any  # a subclass of Named
    place: str  # "package.module:Class"

    def __call__(self, config: Any, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)(config, *args, **kwargs)


def find_part(name: Any, built_in: Mapping[str, Part], key: str) -> Part:
    """Raises UserError, which begins with the `key` that names the part, where there is none of that name."""
    if isinstance(name, str) and name in built_in:
        return built_in[name]
    if isinstance(name, str) and ":" in name:
        return load_part(name, key)
    known = ", ".join(map(repr, built_in))
    near = get_close_matches(name, built_in, n=1) if isinstance(name, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"{key} = {show(name)}: must be one of {known}{hint}, or your own as path/to/file.py:Class")


def load_part(place: str, key: str) -> Part:
    source, _, name = place.rpartition(":")
    module = import_file(Path(source), key) if source.endswith(".py") else import_module(source, key)
    part = getattr(module, name, None)
    config = getattr(part, "Config", None)
    if not callable(part) or not isinstance(config, type) or not issubclass(config, Named):
        raise UserError(f"{key} = {show(place)}: {source} has no class {name!r} with a Config(vineppo.config.Named)")
    return part  # type: ignore[return-value]


def import_file(path: Path, key: str) -> ModuleType:
    """Once in a process, under a name of its own: no file shadows another or an installed package."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{key}: {path}: no such file")
    if run := next((folder for folder in path.parents if (folder / "environment.json").exists()), None):
        raise UserError(f"{key}: {path} lies in the run {run}, and code that came with a run is not run; copy it out")
    name = f"vineppo_part_{path.stem}_{abs(hash(path)):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{key}: {path}: {type(error).__name__}: {error}") from error
    return module


def import_module(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(f"{key}: {name}: {type(error).__name__}: {error}") from error
