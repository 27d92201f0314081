"""What each command of the command line does; cli.py says what it is called and what it takes.

Whatever is heavy is imported by the command that needs it, so that `--help` and a typo are answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from vineppo.config import diff
from vineppo.machine.files import read_json, write_file
from vineppo.machine.terminal import is_harmless, say, table
from vineppo.parts import load_part
from vineppo.types import UserError


def run_quickstart(args: argparse.Namespace) -> None:
    prepare()
    from vineppo.cli.quickstart import quickstart

    quickstart(args.out, seed=args.seed, device=args.device, resume=args.resume)


def run_sft(args: argparse.Namespace) -> None:
    from vineppo.methods.sft import SFTRecipe

    run(args, kinds=(SFTRecipe,), unit="optimizer steps", print_every=10)


def run_train(args: argparse.Namespace) -> None:
    from vineppo.methods.dpo import DPORecipe
    from vineppo.methods.restem import RestEMRecipe
    from vineppo.methods.train import TrainRecipe

    run(args, kinds=(TrainRecipe, RestEMRecipe, DPORecipe), unit="iterations", print_every=1)


def run(args: argparse.Namespace, *, kinds: tuple[type, ...], unit: str, print_every: int) -> None:
    prepare()
    from vineppo.methods import load_recipe
    from vineppo.methods.run import run_recipe
    from vineppo.report import try_report
    from vineppo.runs.progress import Bar, make_progress, speaker

    recipe = load_recipe(args.recipe, args.overrides)
    if not isinstance(recipe, kinds):
        other = "train" if args.command == "sft" else "sft"
        raise UserError(f"{args.recipe} is a recipe for `vineppo {other}`")
    out = args.out or Path("runs") / recipe.name
    with make_progress() as progress:
        bar = Bar(progress, unit, print_every=print_every)
        folder = run_recipe(
            recipe,
            out,
            resume=args.resume,
            sinks=[bar],
            say=speaker(progress),
            on_start=bar.set_total,
        )
    if not bar.num_done:
        say(f"{out} was finished already; nothing was left to do")
    say(f"model: {folder}")
    say(try_report(out))


def run_eval(args: argparse.Namespace) -> None:
    prepare()
    from vineppo.methods import load_recipe
    from vineppo.methods.run import eval_recipe
    from vineppo.models import ModelConfig

    recipe = load_recipe(args.recipe, args.overrides)
    if args.model:
        recipe = recipe.model_copy(update={"model": ModelConfig(name=args.model)})
    check_file(args.json, "--json")
    text = json.dumps(eval_recipe(recipe).to_json(), indent=1)
    say(text)
    if args.json:
        write_file(args.json, text + "\n")


def check_file(path: Path | None, option: str) -> None:
    """Whether the file can be written is known before the work that it is for."""
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path}: is {'a folder' if path.is_dir() else 'a pipe or a device'}; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")
    check_writable(path if path.exists() else path.parent, option)


def check_folder(path: Path | None, option: str) -> None:
    """The same for a folder, which may yet have to be made."""
    if path is None:
        return
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{option} {path}: {nearest} is a file; name a folder")
    check_writable(nearest, option)


def check_writable(path: Path, option: str) -> None:
    if not os.access(path, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written to; name another place")


def run_compare(args: argparse.Namespace) -> None:
    from vineppo.compare.jobs import compare
    from vineppo.compare.tables import accuracy_table
    from vineppo.report import try_report

    sources, overrides = split_sources(args, needs="recipe or run folder")
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    check_folder(args.out, "--out")
    comparison = compare(sources, overrides, seeds=args.seeds, out=args.out, num_jobs=args.jobs, say=say)
    say(accuracy_table(comparison["methods"]))
    for warning in comparison["warnings"]:
        say(f"note: {warning}")
    say(f"all numbers: {args.out / 'comparison.md'} and comparison.json")
    say(try_report(args.out))


def split_sources(args: argparse.Namespace, *, needs: str) -> tuple[list[Path], list[str]]:
    """Paths and overrides, which argparse gives in one list where both may be many."""
    paths = [Path(source) for source in args.sources if is_path(source)]
    if not paths:
        raise UserError(f"{args.command} needs at least one {needs}")
    return paths, [*args.overrides, *(source for source in args.sources if not is_path(source))]


def is_path(source: str) -> bool:
    """A folder may be called after its override, as lr=2e-6."""
    return "=" not in source or Path(source).exists()


def run_report(args: argparse.Namespace) -> None:
    from vineppo.report import watch_report, write_report

    check_folder(args.figures, "--figures")
    check_folder(args.out and args.out.parent, "--out")  # a report makes its folder
    if args.out and args.out.exists():
        check_file(args.out, "--out")
    write = watch_report if args.watch else write_report
    say(f"report: {write(args.sources, out=args.out, figures=args.figures)}")


def run_analyze(args: argparse.Namespace) -> None:
    prepare()
    from vineppo.analysis import analyze, kinds_called

    runs, overrides = split_sources(args, needs="run folder")
    for name in args.part:
        load_part(name, "--part")
    kinds = kinds_called(args.kind)
    check_folder(args.out or runs[0] / "analysis", "--out")
    for kind in kinds:
        try:
            show_analysis(analyze(kind, runs, overrides, out=args.out or runs[0] / "analysis"))
        except UserError as error:
            if len(kinds) == 1:
                raise
            say(f"left out: {error}")


def show_analysis(path: Path) -> None:
    analysis = read_json(path)
    say("\n\n".join([analysis["title"], *map(table, analysis["tables"].values()), f"all of it: {path}"]))


def run_exact(args: argparse.Namespace) -> None:
    prepare()
    from vineppo.exact.measure import exact

    check_file(args.json, "--json")
    exact(args.batches, args.seed, args.json)


def show_config(args: argparse.Namespace) -> None:
    import tomli_w

    from vineppo.methods import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    # TOML has its own way to write a character out; what is printed is a recipe again.
    print("".join(c if is_harmless(c) else f"\\U{ord(c):08x}" for c in text), end="")


def diff_configs(args: argparse.Namespace) -> None:
    from vineppo.methods import load_recipe

    left, right = map(load_recipe, (args.left, args.right))
    for key, (a, b) in diff(left, right).items():
        say(f"{key}: {a!r} -> {b!r}")


def run_doctor(_: argparse.Namespace) -> None:
    prepare()
    from vineppo.cli.doctor import doctor

    doctor()


def prepare() -> None:
    from vineppo.machine import runtime

    runtime.prepare()
