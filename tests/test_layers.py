"""Who may import whom: read from the sources, so that the picture in README.md stays true."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vineppo"

LAYERS = {
    "__init__": 0, "types": 0, "seeding": 0, "config": 0, "metrics": 0, "shutdown": 0, "progress": 0, "charts": 0,
    "files": 0, "terminal": 0, "arguments": 0, "machine": 0, "lock": 0, "intervals": 0, "threads": 0,
    "runtime": 1, "segments": 1, "models": 1, "loading": 1, "sizes": 1,
    "batch": 1, "losses": 1, "optim": 1, "environment": 1,
    "stepper": 1, "epochs": 1, "tensor_files": 1,
    "tasks": 2, "engine": 2, "critic": 2,
    "learner": 3, "checkpoint": 3, "credit": 3, "exact_world": 3,
    "rollouts": 4, "evaluate": 4, "run_folder": 4,
    "train": 5, "sft": 5, "dpo": 5, "restem": 5, "exact": 5,
    "recipe": 6, "changes": 7, "estimate": 7, "session": 8, "runs": 9, "quickstart": 10, "finished_runs": 1,
    "comparison": 1, "report": 1, "compare": 10, "analysis": 10, "doctor": 10, "commands": 11, "cli": 12,
}  # fmt: skip
HEAVY = {"vl_convert", "vllm", "ray", "datasets", "math_verify", "gguf", "wandb", "tensorboard", "trackio", "pyarrow"}
INSIDE = {"engine/vllm_worker.py": {"vllm"}}  # loaded by that package, in its own processes
WITHOUT_TORCH = {
    "charts",
    "types",
    "seeding",
    "config",
    "metrics",
    "files",
    "terminal",
    "machine",
    "lock",
    "intervals",
    "threads",
    "report",
    "shutdown",
    "segments",
    "tasks",
    "environment",
    "exact_world",
}

FILES = sorted(ROOT.rglob("*.py"))


def layer_name(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.Module, *, top_level_only: bool) -> set[str]:
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_to_lower_layers(path):
    me = layer_name(path)
    for module in imports(ast.parse(path.read_text()), top_level_only=False):
        if not module.startswith("vineppo."):
            continue
        other = module.split(".")[1]
        if other in LAYERS and other != me:
            assert LAYERS[other] < LAYERS[me] or (LAYERS[other] == LAYERS[me] and LAYERS[me] in (0, 1)), (
                f"{me} (layer {LAYERS[me]}) imports {other} (layer {LAYERS[other]})"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_are_imported_where_they_are_needed(path):
    roots = {module.split(".")[0] for module in imports(ast.parse(path.read_text()), top_level_only=True)}
    assert roots & HEAVY == INSIDE.get(str(path.relative_to(ROOT)), set())


def test_what_runs_inside_of_another_package_is_imported_by_nobody_else():
    inside = {"vineppo." + name.removesuffix(".py").replace("/", ".") for name in INSIDE}
    for path in FILES:
        assert not imports(ast.parse(path.read_text()), top_level_only=False) & inside


@pytest.mark.parametrize("path", [p for p in FILES if layer_name(p) in WITHOUT_TORCH], ids=lambda path: path.stem)
def test_what_knows_no_tensors_imports_no_torch(path):
    roots = {module.split(".")[0] for module in imports(ast.parse(path.read_text()), top_level_only=False)}
    lazy_allowed = {"metrics"}  # TensorBoard's writer lives in torch and is imported when asked for
    if layer_name(path) not in lazy_allowed:
        assert not roots & {"torch", "transformers"}


def test_every_file_has_a_layer():
    assert {layer_name(path) for path in FILES} == set(LAYERS)
