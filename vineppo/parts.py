"""Parts that a recipe names: built-in ones, and anybody's own as path/to/file.py:Class or package.module:Class.

A part is a class with a `Config`, whose fields are the knobs of its section of the recipe; it is made by calling it
with that config first. A built-in part may take functions of the user's besides, named in the same way.

Somebody's own part or function is code. `load_part` and `load_function` run it, and are called for what the user has
named: in a recipe of theirs or on the command line. `find_part` and `find_function` run nothing: they know the
built-in parts and what was loaded before. So the recipe that lies in a run's folder, which may be anybody's, can name
code but not run it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from vineppo.config import Named, show
from vineppo.seeding import derive_seed
from vineppo.types import UserError

HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
RECIPE, OF_A_RUN = "recipe.toml", ("environment.json", "metrics.jsonl", "checkpoints")
"""A folder that holds the first and any of the others is a run's."""


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


@dataclass(frozen=True)
class Code:
    """A file as it was when it was run first; another process that needs it runs the same."""

    module: str  # its name in sys.modules
    path: str
    source: bytes


@dataclass(frozen=True)
class Function:
    """Somebody's own, by the place where it stands: so it can be sent to another process that runs the same code."""

    module: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.itself(*args, **kwargs)

    @property
    def itself(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)


LOADED: dict[str, Part] = {}
"""By full name."""
FUNCTIONS: dict[str, Function] = {}
"""By full name."""
CODE: dict[str, Code] = {}
"""By module."""


def is_own(name: Any) -> bool:
    return isinstance(name, str) and ":" in name


def full_name(name: Any) -> Any:
    """With the whole path of a file, which is relative to the working directory; any other name as it is."""
    path, colon, attribute = name.rpartition(":") if is_own(name) else ("", "", "")
    return f"{os.path.realpath(os.path.expanduser(path))}{colon}{attribute}" if path.endswith(".py") else name


def find_part(name: Any, built_in: Mapping[str, Part], key: str) -> Part:
    """By its full name; raises UserError, which begins with the `key` that names the part, where there is none."""
    part = built_in.get(name) or LOADED.get(name) if isinstance(name, str) else None
    if part is not None:
        return part
    if is_own(name):
        raise UserError(
            f"{key} = {show(name)}: code that a run names is run only if you name it too: as {key.split()[-1]}=... "
            "behind the recipe, or with `analyze --part`"
        )
    known = ", ".join(map(repr, built_in))
    raise UserError(
        f"{key} = {show(name)}: must be one of {known}{did_you_mean(name, built_in)}, "
        "or your own as path/to/file.py:Class"
    )


def find_function(name: str) -> Function:
    """By its full name; raises ValueError where it was not loaded."""
    if name not in FUNCTIONS:
        raise ValueError(
            "code that a run names is run only if you name it too: as an override behind the recipe, or with "
            "`analyze --part`"
        )
    return FUNCTIONS[name]


def did_you_mean(name: Any, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def load_part(name: str, key: str) -> None:
    """Runs the code of an own part, so that `find_part` finds it; raises UserError that begins with `key`."""
    name = full_name(name)
    if name in LOADED:
        return
    module, attribute = load_source(name, key)
    source, part = name.rpartition(":")[0], getattr(module, attribute, None)
    if not isinstance(part, type):
        classes = {called: found for called, found in vars(module).items() if hasattr(found, "Config")}
        raise UserError(f"{key}: {source} has no class {attribute!r}{did_you_mean(attribute, classes)}")
    config = getattr(part, "Config", None)
    if not isinstance(config, type) or not issubclass(config, Named):
        raise UserError(f"{key}: {source}: {attribute} needs a Config, a subclass of vineppo.config.Named")
    LOADED[name] = part  # type: ignore[assignment]


def load_function(name: str, key: str) -> None:
    """Runs the code of an own function, so that `find_function` finds it; raises UserError that begins with `key`."""
    name = full_name(name)
    if name in FUNCTIONS:
        return
    module, attribute = load_source(name, key)
    function = getattr(module, attribute, None)
    if not callable(function) or isinstance(function, type):
        routines = {called: found for called, found in vars(module).items() if inspect.isroutine(found)}
        raise UserError(
            f"{key}: {name.rpartition(':')[0]} has no function {attribute!r}{did_you_mean(attribute, routines)}"
        )
    FUNCTIONS[name] = Function(module.__name__, attribute)


def load_own(name: str, key: str) -> None:
    """A part or a function, whichever it is."""
    module, attribute = load_source(full_name(name), key)
    is_function = callable(found := getattr(module, attribute, None)) and not isinstance(found, type)
    (load_function if is_function else load_part)(name, key)


def load_source(name: str, key: str) -> tuple[ModuleType, str]:
    """The module that a full name leads to, and what it is to have."""
    source, _, attribute = name.rpartition(":")
    return load_file(source, key) if source.endswith(".py") else load_module(source, key), attribute


def load_file(path: str, key: str) -> ModuleType:
    """Never from a cache of compiled code, which may hold something else than the file that was read by its user."""
    if not os.path.isfile(path):
        raise UserError(f"{key}: {path}: no such file; a path begins at the working directory, {os.getcwd()}")
    if run := run_around(path):
        raise UserError(f"{key}: {path} lies in the run {run}, and code that came with a run is not run; copy it out")
    module = f"vineppo_own_{re.sub(r'[^A-Za-z0-9_]', '_', Path(path).stem)}_{derive_seed(path):016x}"
    try:
        return run_code(Code(module, path, Path(path).read_bytes()))
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: {place_of(error, path)}: {describe_error(error)}") from error


def load_module(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: {name}: {describe_error(error)}") from error


def run_code(code: Code) -> ModuleType:
    """Once in a process, under a name of its own: no file shadows another or an installed package."""
    if code.module in sys.modules:
        return sys.modules[code.module]
    module = sys.modules[code.module] = ModuleType(code.module)
    module.__file__ = code.path
    try:
        exec(compile(code.source, code.path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[code.module]
        raise
    CODE[code.module] = code
    return module


def codes_in(pickled: bytes) -> list[Code]:
    """The files whose classes and functions a pickle names; who reads it must have run them."""
    return [code for module, code in CODE.items() if module.encode() in pickled]


def run_around(path: str | Path) -> Path | None:
    """The run that a file lies in, by its name or behind its links."""
    above = (*Path(os.path.abspath(path)).parents, *Path(os.path.realpath(path)).parents)
    return next(filter(is_run, above), None)


def is_run(folder: Path) -> bool:
    return (folder / RECIPE).exists() and any((folder / name).exists() for name in OF_A_RUN)


def place_of(error: BaseException, path: str) -> str:
    """The file, and the last of its lines that the error came by."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def explain_error(error: BaseException) -> str:
    """The last line of somebody's own code that the error came by, as file:line, and what it says."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = {code.path for code in CODE.values()}
    places = [place for place in frames if place[0] in own] or [p for p in frames if not p[0].startswith((HERE, "<"))]
    place = [f"{file}:{line}" for file, line in places[-1:]]
    return ": ".join([*place, describe_error(error)])


def describe_error(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def own_code(key: str) -> Iterator[None]:
    """Whatever it does wrong is a UserError that begins with `key`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: {explain_error(error)}") from error


def check_members(part: Any, protocol: type, key: str) -> None:
    """Raises UserError that names what an own part lacks."""
    wanted = (*vars(protocol), *protocol.__annotations__)
    missing = sorted({name for name in wanted if not name.startswith("_") and not hasattr(part, name)})
    if missing:
        kind, lacks = protocol.__name__, ", ".join(missing)
        raise UserError(f"{key}: {type(part).__name__} lacks {lacks}; see {kind} in vineppo/protocols.py")
