"""Hostile values and mutations: what a recipe, a line of data or a file may look like when something went wrong."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

TEXTS = (
    "", " ", "0", "-1", "nan", "true", "null", "..", ".", "/", "~", "a/../b", "/dev/null", "/dev/zero", "/nowhere/x",
    "x" * 300, "caf\u00e9", "\u202e\u200b", "\x1b]0;title\x07", "a\nb", "\r", "\t", "{problem}", "{0}", "%s", "$HOME",
    "</script>", "\\boxed{1}", "#### 1", "[/b]", "<|endoftext|>", "a\0b",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 10**9, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, 0.5, -0.0, 1e-300, 1e-8, 1e30, 1e300,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
OTHERS = (True, False, [], [[]], [0], [1, 2], [""], ["a"], [-1, -1], [[1]], {}, {"name": "x"}, {"a": {"b": {}}})
VALUES: tuple[Any, ...] = (*TEXTS, *NUMBERS, *OTHERS)

RAW = (  # TOML and JSON that no writer makes
    "9" * 5000, "0x" + "f" * 5000, "[" * 3000, "{a=" * 3000, "[" * 30 + "]" * 30, "1\nother = 2", "1\n[other]\nx = 2",
    '"""a\nb"""', "2020-01-01", "2020-13-01", "25:00:00", "1_000", "0b11", "'", '"\\ud800"', '"\\u0000"', "=", "==",
    "1 # no", "1e999", "-", "{}", "{name='grpo'}", "[,]", ",", "\udcff", "x\udce9", "a\0b",
)  # fmt: skip
BYTES = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"{",
    b"[]",
    b"null",
    b"\n",
    b"1",
    b'"x"',
    b"{}",
    b"\x89PNG\r\n",
    b"NaN",
)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every key and list item, sections too."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in ((*path, key), *leaves(value, (*path, key)))]


def mutate_tree(tree: Mapping[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy in which one thing is wrong, or may be; and what."""
    changed: Any = copy.deepcopy(dict(tree))
    places = leaves(changed)
    if not places:
        return {"x": 1}, "x: added"
    path = rng.choice(places)
    parent = follow(changed, path[:-1])
    key, value = path[-1], parent[path[-1]]
    how = rng.choice(("value", "value", "value", "drop", "rename", "wrap", "move", "type"))
    if how == "value":
        parent[key] = rng.choice(VALUES)
    elif how == "drop":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice((str(key) + "s", str(key)[:-1], "", str(key).upper(), "\u00e9", "a.b"))] = parent.pop(key)
    elif how == "move":
        other = rng.choice(places)
        try:
            follow(changed, other[:-1])[other[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            parent[key] = {key if isinstance(key, str) else "x": value}
    elif how == "type":
        parent[key] = str(value) if not isinstance(value, str) else 3
    else:
        parent[key] = [value]
    return changed, f"{'.'.join(map(str, path))}: {how}"


def follow(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutate_bytes(content: bytes, rng: random.Random, *, inside: bool = True) -> bytes:
    """Cut, garbled, doubled, with lines lost; `inside` of lines too, where one digit may become another."""
    at = rng.randrange(len(content) + 1)
    lines = content.splitlines(keepends=True) or [b""]
    line = rng.randrange(len(lines))
    ways: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[: len(content) // 2],
        lambda: b"".join(lines[:line] + lines[line + 1 :]),
        lambda: b"".join(lines[:line] + [lines[line]] * 2 + lines[line + 1 :]),
        lambda: b"".join([*lines[:line], rng.choice(BYTES) + b"\n", *lines[line + 1 :]]),
        lambda: rng.choice(BYTES),
        lambda: content + content,
        lambda: bytes(len(content)),
    ]
    if inside:
        ways += [
            lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
            lambda: content[:at] + rng.choice(BYTES) + content[at:],
        ]
    return rng.choice(ways)()


def write_recipe(path: Path, tree: Mapping[str, Any]) -> None:
    """As TOML, with such values too as its writer refuses."""
    path.write_bytes(to_toml(tree).encode("utf-8", "surrogateescape"))


def to_toml(tree: Mapping[str, Any]) -> str:
    try:
        return tomli_w.dumps(tree)
    except (TypeError, ValueError, AttributeError):
        return "\n".join(f"{json.dumps(str(key))} = {json.dumps(value, default=str)}" for key, value in tree.items())


def mutate_json_file(path: Path, rng: random.Random) -> str:
    """One key of a JSON object, or the bytes of a file that holds none."""
    try:
        tree, what = mutate_tree(json.loads(path.read_bytes()), rng)
        path.write_text(json.dumps(tree))
    except (ValueError, TypeError, AttributeError):
        what = "bytes"
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return f"{path.name} {what}"
