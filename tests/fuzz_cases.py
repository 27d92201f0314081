"""Cases of the fuzz campaign: the function of a class sets up one thing that is wrong, and says what may come of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile import BYTES, RAW, TEXTS, mutate_bytes, mutate_json_file, mutate_tree, write_recipe
from tasks.bad_data import ROWS, damaged_jsonl
from tiny import ALIKE, COMMON, FAST, FLOAT32, METHODS, SFT, START, Tree

from vineppo.config import flatten, read_toml
from vineppo.methods import load_recipe
from vineppo.methods.train import TrainRecipe
from vineppo.runs.checkpoint import write_checksums

SHIPPED = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))

TINY = ALIKE | {
    "engine": COMMON["engine"] | {"kernels": "torch"},
    "learner": FLOAT32,
    "checkpoint": {"every": 1, "keep_last": 2},
}
SAMPLING = {"sampling": {"prompts_per_iteration": 4, "group_size": 4, "max_new_tokens": 18}}
LOOP = SAMPLING | {"train": METHODS["grpo"]["train"]}
KINDS: dict[str, Tree] = {
    "sft": {"sft": SFT["sft"]},
    "vineppo": LOOP | {"credit": METHODS["vineppo"]["credit"]},
    "ppo": LOOP | {"credit": {"name": "ppo", "critic": {"precision": "float32"}}},
    "grpo": LOOP | {"credit": METHODS["grpo"]["credit"]},
    "restem": SAMPLING | {"restem": METHODS["restem"]["restem"] | {"num_iterations": 3, "num_epochs": 1}},
    "dpo": SAMPLING | {"dpo": METHODS["dpo"]["dpo"]},
}
STOPS = {"sft": 30, "vineppo": 3, "ppo": 3, "grpo": 3, "restem": 2, "dpo": None}
"""The iteration after which the stopped run of a kind was stopped; None leaves no such run."""


@dataclass(frozen=True)
class Base:
    """What every case copies from: recipes, a stopped and a whole run of every kind, and data."""

    root: Path

    def recipe(self, kind: str) -> Path:
        return self.root / f"{kind}.toml"

    def whole(self, kind: str) -> Path:
        return self.root / "whole" / kind

    def stopped(self, kind: str) -> Path:
        return self.root / "stopped" / kind

    def model(self) -> Path:
        return last_checkpoint(self.whole("sft"))

    def reader(self) -> Path:
        """A model whose tokenizer can write any text."""
        return self.root / "reader"


@dataclass(frozen=True)
class Case:
    argv: Sequence[str]
    what: str
    """What is wrong in it."""
    wrong: Callable[[str], str | None] = lambda said: None
    """Told standard output after exit code 0: what is wrong with the result."""
    unprivileged: bool = False


def tree_of(kind: str, start: Path) -> dict[str, Any]:
    model = START if kind == "sft" else {"name": str(start)}
    tree = {"name": kind, "seed": 3, "model": model, **TINY, **KINDS[kind]}
    return tree | {"learner": FAST} if kind == "sft" else tree


def last_checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("iteration-*"))[-1]


def command_of(tree: Any) -> str:
    return "sft" if isinstance(tree, dict) and "sft" in tree else "train"


# Recipes and overrides


def fuzz_recipes(base: Base, scratch: Path, rng: random.Random) -> Case:
    path = scratch / "recipe.toml"
    if rng.random() < 0.5:
        source = rng.choice(SHIPPED)
        tree, command = read_toml(source), "config show"
    else:
        source = base.recipe(rng.choice(list(KINDS)))
        tree, command = read_toml(source), rng.choice(("config show", "train"))
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(source.read_bytes(), rng))
        what = "bytes"
    else:
        changed, what = mutate_tree(tree, rng)
        write_recipe(path, changed)
    return on_recipe(path, command, command_of(tree), [], f"{source.name} {what}", scratch)


def fuzz_overrides(base: Base, scratch: Path, rng: random.Random) -> Case:
    source = base.recipe(rng.choice(list(KINDS)))
    keys = list(flatten(load_recipe(source).model_dump(mode="json")))
    keys += [
        "",
        ".",
        "a..b",
        "task",
        "model",
        "train",
        "sft",
        "learner.optim",
        "seed.x",
        "\u00e9",
        "a b",
        '"a"',
        "a[0]",
    ]
    value = lambda: rng.choice((*RAW, *TEXTS, "1", "2", "1e-3", "true"))  # noqa: E731
    overrides = [f"{rng.choice(keys)}={value()}" for _ in range(rng.choice((1, 1, 2)))]
    command = rng.choice(("config show", "train"))
    return on_recipe(source, command, command_of(read_toml(source)), overrides, ascii(overrides)[:200], scratch)


def on_recipe(path: Path, command: str, kind: str, overrides: list[str], what: str, scratch: Path) -> Case:
    if command == "config show":
        return Case(
            ["config", "show", str(path), *overrides], what, lambda said: wrong_show(path, overrides, said, scratch)
        )
    out = scratch / "run"
    return Case([kind, str(path), "--out", str(out), *overrides], what, lambda said: wrong_run(out))


def wrong_show(path: Path, overrides: Sequence[str], said: str, scratch: Path) -> str | None:
    """What is printed must be the recipe again, and say every value of the file."""
    again = scratch / "shown.toml"
    again.write_bytes(said.encode("utf-8", "surrogateescape"))
    if load_recipe(again) != load_recipe(path, overrides):
        return "what config show prints is another recipe"
    shown = flatten(read_toml(again))
    lost = [key for key, value in flatten(read_toml(path)).items() if not overrides and not says(shown.get(key), value)]
    return f"config show leaves out {', '.join(lost)}" if lost else None


def says(shown: Any, value: Any) -> bool:
    return shown == (float(value) if isinstance(shown, float) else value)  # past 2^53 not every whole number is one


def wrong_run(run: Path) -> str | None:
    """A run that says it is finished has every line, a result and a checkpoint."""
    result = json.loads((run / "result.json").read_text())
    recipe = load_recipe(run / "recipe.toml")
    iterations = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if iterations != list(range(1, result["iteration"] + 1)):
        return f"the log has iterations {iterations}, the result is of {result['iteration']}"
    if isinstance(recipe, TrainRecipe) and len(iterations) != recipe.train.num_iterations:
        return f"{len(iterations)} of {recipe.train.num_iterations} iterations"
    if not result.get("finished") or not last_checkpoint(run).name.endswith(f"{iterations[-1]:06d}"):
        return "it is not finished"
    return None


# Runs and checkpoints


def fuzz_runs(base: Base, scratch: Path, rng: random.Random) -> Case:
    kind = rng.choice(list(KINDS))
    stopped = STOPS[kind] is not None and rng.random() < 0.6
    run = copy_run(base.stopped(kind) if stopped else base.whole(kind), scratch)
    files = sorted(path for path in run.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
    what = f"{kind} {'stopped' if stopped else 'whole'}: " + damage(run, rng.choice(files), rng)
    return Case(*on_run(base, kind, run, stopped, rng, what))


def fuzz_checkpoints(base: Base, scratch: Path, rng: random.Random) -> Case:
    kind = rng.choice([kind for kind, stop in STOPS.items() if stop is not None])
    run = copy_run(base.stopped(kind), scratch)
    folder = rng.choice(sorted((run / "checkpoints").glob("iteration-*")))
    if rng.random() < 0.2:  # another architecture's, complete in itself
        other = last_checkpoint(base.root / "whole" / "other")
        for path in other.iterdir():
            if path.is_file() and (rng.random() < 0.5 or path.suffix in (".safetensors", ".pt")):
                shutil.copy(path, folder / path.name)
        what = f"{folder.name} with another architecture's files"
    else:
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        keep_trainer = path.name in ("trainer.json", "trainer.pt", "checksums.json")
        what = f"{folder.name}: " + damage(folder, path, rng)
        if not keep_trainer:  # else its checksum would say that the other seed or iteration is right
            return resume(base, kind, run, f"{kind} {what}")
    if rng.random() < 0.5 and (folder / "checksums.json").is_file() and "another" in what:
        write_checksums(folder)
        what += ", checksums right"
    return resume(base, kind, run, f"{kind} {what}")


def copy_run(source: Path, scratch: Path) -> Path:
    return Path(shutil.copytree(source, scratch / "run", symlinks=True))


def damage(folder: Path, path: Path, rng: random.Random) -> str:
    """One file is not what it was, or there is one more."""
    name = str(path.relative_to(folder))
    ways = ("cut", "empty", "bytes", "bytes", "remove", "folder", "link", "stray", "json", "nul")
    how = rng.choice(ways if path.name != "result.json" else ("cut", "empty", "remove", "folder", "link", "nul"))
    content = path.read_bytes()
    if how == "json" and path.suffix == ".json":
        return mutate_json_file(path, rng)
    if how == "stray":
        stray = path.with_name(rng.choice((path.name + ".bak", path.name + ".part", "iteration-000002.bak", "x", ".x")))
        if not stray.exists():
            stray.write_bytes(rng.choice(BYTES))
        return f"{name}: beside it {stray.name}"
    if how in ("remove", "folder", "link"):
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to("nowhere")
    elif how != "remove":
        changed = {"cut": content[: len(content) // 2], "empty": b"", "nul": bytes(len(content))}
        inside = path.suffix != ".jsonl"  # without a checksum nobody sees that one digit has become another
        path.write_bytes(changed[how] if how in changed else mutate_bytes(content, rng, inside=inside))
    return f"{name}: {how}"


def on_run(base: Base, kind: str, run: Path, stopped: bool, rng: random.Random, what: str) -> tuple[Any, ...]:
    ways = ("resume", "resume", "again", "report", "analyze", "compare")
    match rng.choice(ways):
        case "again":
            argv = [command_of(KINDS[kind]), str(base.recipe(kind)), "--out", str(run)]
            return argv, what + " (again)", lambda said: wrong_run(run)
        case "report":
            out = run.with_name("report.html")
            return ["report", str(run), "--out", str(out)], what, lambda said: None if out.stat().st_size else "empty"
        case "analyze":
            analysis = rng.choice(("kl", "efficiency", "generalisation", "advantage_distribution"))
            return ["analyze", str(run), "--kind", analysis, "--out", str(run.with_name("analysis"))], what
        case "compare":
            out = run.with_name("compared")
            argv = ["compare", str(run), str(base.whole("grpo")), "--out", str(out)]
            return argv, what, lambda said: None if (out / "comparison.json").exists() else "no comparison"
        case _:
            case = resume(base, kind, run, what)
            return case.argv, case.what, case.wrong


def resume(base: Base, kind: str, run: Path, what: str) -> Case:
    argv = [command_of(KINDS[kind]), str(base.recipe(kind)), "--out", str(run), "--resume"]
    return Case(argv, what, lambda said: differs(run, base.whole(kind)))


def differs(run: Path, whole: Path) -> str | None:
    """A run that was damaged and still finished is the run that was not damaged."""
    names = ["metrics.jsonl", "result.json"]
    last = last_checkpoint(whole)
    names += [str((last / name).relative_to(whole)) for name in ("model.safetensors", "trainer.json")]
    others = [name for name in names if not same(run / name, whole / name)]
    return f"{', '.join(others)} not as undisturbed" if others else None


def same(a: Path, b: Path) -> bool:
    return a.is_file() and a.read_bytes() == b.read_bytes()


# Models and data


def fuzz_models(base: Base, scratch: Path, rng: random.Random) -> Case:
    model = Path(shutil.copytree(base.model(), scratch / "model"))
    path = rng.choice([model / "config.json", model / "model.safetensors", *sorted(model.iterdir())])
    what = mutate_json_file(path, rng) if path.name == "config.json" else damage(model, path, rng)
    argv = ["eval", str(base.recipe("sft")), "--model", str(model), "--json", str(scratch / "eval.json")]
    return Case(argv, what, lambda said: wrong_eval(scratch / "eval.json", said))


def wrong_eval(path: Path, said: str) -> str | None:
    stored = json.loads(path.read_text())
    if not 0 <= stored["pass@1"] <= 1:
        return f"pass@1 = {stored['pass@1']}"
    return None if json.dumps(stored, indent=1) in said else "printed is not what is stored"


def fuzz_data(base: Base, scratch: Path, rng: random.Random) -> Case:
    name = rng.choice(list(ROWS))
    folder = scratch / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    path = folder / rng.choice(("train.jsonl", "test.jsonl"))
    if rng.random() < 0.8:
        content, lines = damaged_jsonl(rng, ROWS[name])
        path.write_bytes(content)
        what = f"{path.name}: lines {sorted(lines)}"
    else:
        what = damage(folder, path, rng)
    task = [f"task={{name='{name}', path='{folder}', num_validation=1}}", "evaluation.max_new_tokens=4"]
    argv = ["eval", str(base.recipe("sft")), *task, "--model", str(base.reader()), "--json", str(scratch / "eval.json")]
    return Case(argv, f"{name} {what}", lambda said: wrong_eval(scratch / "eval.json", said))


# Folders that one may not read or write


def fuzz_permissions(base: Base, scratch: Path, rng: random.Random) -> Case:
    """As a user who may not write, or not read, one of the places."""
    kind = rng.choice([kind for kind, stop in STOPS.items() if stop is not None])
    run = copy_run(base.stopped(kind), scratch)
    places = [run, *sorted(run.rglob("*"))]
    place = rng.choice(places)
    place.chmod(rng.choice((0o000, 0o500 if place.is_dir() else 0o400)))
    what = f"{kind} {place.relative_to(scratch)}: mode {place.stat().st_mode & 0o777:o}"
    argv, what, *wrong = on_run(base, kind, run, True, rng, what)
    return Case(argv, what, *wrong, unprivileged=True)
