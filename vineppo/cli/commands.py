"""What each command does. What is heavy is imported where it is needed, after the recipe was read: `--help`, a recipe
that is shown and a typo are answered at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vineppo.config import diff
from vineppo.machine.files import check_file, check_folder, read_json, write_file
from vineppo.machine.tables import aligned
from vineppo.machine.terminal import echo, is_harmless
from vineppo.parts import load_own
from vineppo.types import UserError


def run_quickstart(args: argparse.Namespace) -> None:
    prepare()
    from vineppo.cli.quickstart import quickstart

    quickstart(args.out, seed=args.seed, device=args.device, resume=args.resume)


def run_sft(args: argparse.Namespace) -> None:
    run(args, unit="optimizer steps", print_every=10)


def run_prm(args: argparse.Namespace) -> None:
    run(args, unit="optimizer steps", print_every=10)


def run_train(args: argparse.Namespace) -> None:
    run(args, unit="iterations", print_every=1)


def run(args: argparse.Namespace, *, unit: str, print_every: int) -> None:
    from vineppo.methods import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.command != args.command:
        raise UserError(f"{args.recipe} is a recipe for `vineppo {recipe.command}`")
    prepare()
    from vineppo.methods.run import run_recipe
    from vineppo.report import try_report
    from vineppo.runs.progress import Bar, echo_above, make_progress

    out = args.out or Path("runs") / recipe.name
    with make_progress() as progress:
        bar = Bar(progress, unit, print_every=print_every)
        folder = run_recipe(
            recipe,
            out,
            resume=args.resume,
            sinks=[bar],
            echo=echo_above(progress),
            on_start=bar.set_total,
        )
    if not bar.num_done:
        echo(f"{out} was finished already; nothing was left to do")
    echo(f"model: {folder}")
    echo(try_report(out))


def run_check_task(args: argparse.Namespace) -> None:
    from vineppo.methods import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    prepare()
    from vineppo.cli.check_task import check_task

    check_task(recipe)


def run_eval(args: argparse.Namespace) -> None:
    from vineppo.methods import load_recipe
    from vineppo.models import ModelConfig

    recipe = load_recipe(args.recipe, args.overrides)
    if args.model:
        recipe = recipe.model_copy(update={"model": ModelConfig(name=args.model)})
    if args.json:
        check_file(args.json)
    prepare()
    from vineppo.methods.run import eval_recipe

    text = json.dumps(eval_recipe(recipe).to_json(), indent=1)
    echo(text)
    if args.json:
        write_file(args.json, text + "\n")


def run_compare(args: argparse.Namespace) -> None:
    sources, overrides = split_sources(args, needs="recipe or run folder")
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    check_folder(args.out)
    from vineppo.compare.jobs import compare
    from vineppo.compare.tables import markdown_tables
    from vineppo.report import try_report

    comparison = compare(sources, overrides, seeds=args.seeds, out=args.out, num_jobs=args.jobs, echo=echo)
    echo(markdown_tables(comparison)["accuracy"])
    for warning in comparison["warnings"]:
        echo(f"note: {warning}")
    echo(f"all numbers: {args.out / 'comparison.md'} and comparison.json")
    echo(try_report(args.out))


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

    write = watch_report if args.watch else write_report
    echo(f"report: {write(args.sources, out=args.out, figures=args.figures)}")


def run_analyze(args: argparse.Namespace) -> None:
    runs, overrides = split_sources(args, needs="run folder")
    out = args.out or runs[0] / "analysis"
    check_folder(out)
    prepare()
    from vineppo.analysis import analyze, kinds_called

    for name in args.part:
        load_own(name, "--part")
    kinds = kinds_called(args.kind)
    for kind in kinds:
        try:
            show_analysis(analyze(kind, runs, overrides, out=out))
        except UserError as error:
            if len(kinds) == 1:
                raise
            echo(f"left out: {error}")


def show_analysis(path: Path) -> None:
    analysis = read_json(path)
    echo("\n\n".join([analysis["title"], *map(aligned, analysis["tables"].values()), f"all of it: {path}"]))


def run_exact(args: argparse.Namespace) -> None:
    if args.json:
        check_file(args.json)
    if args.figures:
        check_folder(args.figures)
    from vineppo.exact.command import exact

    exact(args.world, args.batches, args.seed, args.json, args.figures)


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
        echo(f"{key}: {a!r} -> {b!r}")


def run_doctor(_: argparse.Namespace) -> None:
    prepare()
    from vineppo.cli.doctor import doctor

    doctor()


def prepare() -> None:
    from vineppo.machine import runtime

    runtime.prepare()
