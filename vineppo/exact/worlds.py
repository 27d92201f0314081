"""The worlds by name."""

from __future__ import annotations

from collections.abc import Sequence

from vineppo.exact.chain import CHAINS
from vineppo.exact.language import Language
from vineppo.exact.world import Rules, World, make_world
from vineppo.types import UserError

WORLDS: dict[str, Rules] = {rules.name: rules for rules in (Language(), *CHAINS)}


def find_world(name: str) -> World:
    return make_world(WORLDS[name])


def check_names(names: Sequence[str]) -> list[str]:
    """The worlds of these names, or all; each once, in the order of `WORLDS`."""
    unknown = [name for name in names if name not in WORLDS]
    if unknown:
        raise UserError(f"--world {unknown[0]}: there is no such world; choose among {', '.join(WORLDS)}")
    return [name for name in WORLDS if name in names or not names]
