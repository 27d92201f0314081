"""Who may import whom, and what a recipe's reader must not wait for: read from the sources, lazy imports too."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vineppo"

LAYERS = [
    {"types", "sample", "transcript", "checks", "protocols", "seeding"},
    {"machine", "config", "intervals"},
    {"sandbox"},
    {"parts", "segments", "alternatives", "batch", "models", "grading", "framing"},
    {"thinking", "episode", "cutting", "environment"},
    {"rollouts", "rollout_files", "evaluate"},
    {"tasks", "engine", "learner"},
    {"credit"},
    {"runs"},
    {"methods"},
    {"exact", "compare", "report", "analysis"},
    {"cli", "__init__"},
]
"""Rooms and files of the top, from the ground up: whoever imports looks down, or at a neighbour in the same set."""
HEAVY = {
    "torch": {
        *("batch", "models", "learner", "engine", "analysis/gradient_variance", "machine/runtime"),
        *("machine/tensor_files", "methods/dpo", "learner/objective", "runs/metrics", "compare/jobs"),
    },
    "transformers": {"models", "engine", "machine/runtime"},
    "vllm": {"engine/vllm"},
    "triton": {"engine/llama/kernels"},
    "math_verify": {"tasks/answers/formulas"},
    "datasets": {"tasks/dataset"},
    "reasoning_gym": {"tasks/reasoning_gym"},
    "pyarrow": {"tasks/dataset"},
    "gguf": {"models/loading"},
    "textarena": {"tasks/arena"},
    "vl_convert": {"report"},
    "wandb": {"runs/metrics"},
    "trackio": {"runs/metrics"},
    "tensorboard": {"runs/metrics"},
}
"""Packages that take long to import or are extras, and the only places that may, at the top or inside of a function."""
AT_THE_TOP = {"torch", "transformers", "triton"}
"""Of these, what a file may import before it is asked for anything; the file itself is then imported late."""
WORKER = "engine/vllm/worker"
"""Imported by vLLM in processes of its own, by nothing here."""
INDEPENDENT = {
    "tasks": {"arithmetic", "code", "game", "gsm8k", "math", "python_tool", "qa", "reasoning_gym", "textarena", "web"},
    "credit": {"vineppo", "ppo", "grpo", "rloo", "tree", "vines", "vine_critic", "potential"},
}
"""Parts of a room that must not know each other."""

FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


def room(name: str) -> str:
    return name.split("/")[0]


def layer(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room(name) in rooms)


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def imported(name: str, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of modules, and of what is taken from them."""
    found: set[str] = set()
    for node in tree(name).body if top_level_only else ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def file_of(dotted: str) -> str | None:
    """The file that a dotted name leads to: the module itself, or the one that defines the name."""
    parts = dotted.split(".")
    if parts[0] != "vineppo":
        return None
    path = "/".join(parts[1:])
    candidates = [path, f"{path}/__init__", "/".join(parts[1:-1]), "/".join([*parts[1:-1], "__init__"])]
    return next((c.removeprefix("/") for c in candidates if c.removeprefix("/") in FILES), None)


def arrows(name: str) -> set[str]:
    """The files that importing `name` runs: those it names, and of other rooms also the `__init__` on the way."""
    found = {file for dotted in imported(name) if (file := file_of(dotted))} - {name}
    for file in list(found):
        for parent in Path(file).parents:
            init = f"{parent}/__init__".removeprefix("./")
            if parent != Path(".") and init in FILES and not Path(name).is_relative_to(parent):
                found.add(init)
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_look_down(name):
    up = {other for other in arrows(name) if layer(other) > layer(name)}
    assert not up, f"{name} imports {up}, which stand above it"


def test_no_import_is_part_of_a_circle():
    list(TopologicalSorter({name: arrows(name) for name in FILES}).static_order())


@pytest.mark.parametrize("name", FILES)
def test_parts_of_one_kind_do_not_know_each_other(name):
    siblings = INDEPENDENT.get(room(name), set())
    others = {other for other in arrows(name) if room(other) == room(name) and Path(other).stem in siblings}
    assert Path(name).stem not in siblings or not others, f"{name} imports {others}"


@pytest.mark.parametrize("name", FILES)
def test_heavy_packages_are_imported_only_where_they_are_at_home(name):
    anywhere = {dotted.split(".")[0] for dotted in imported(name)}
    at_the_top = {dotted.split(".")[0] for dotted in imported(name, top_level_only=True)}
    for package in anywhere & HEAVY.keys():
        assert any(Path(name).is_relative_to(place) for place in HEAVY[package]), f"{name} imports {package}"
    late = (HEAVY.keys() - AT_THE_TOP) & at_the_top
    assert not late or name == WORKER, f"{name} imports {late} at its top; do it where it is needed"


def test_nothing_imports_what_runs_inside_of_vllm():
    assert not [name for name in FILES if WORKER in arrows(name)]


def test_every_room_has_a_layer():
    assert sorted(room for rooms in LAYERS for room in rooms) == sorted({room(name) for name in FILES})


@pytest.mark.parametrize("module", ["tasks", "grading.worker", "report", "environment", "exact.world"])
def test_what_knows_no_tensors_does_not_load_torch(module):
    """In a process of its own: through whatever it imports."""
    code = f"import sys, vineppo.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
