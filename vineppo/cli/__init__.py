"""The command line: `vineppo COMMAND`, and what each takes (here, arguments.py) and does (commands.py).

quickstart.py and doctor.py are commands of their own. Exit codes: 0 done, 2 a mistake that the message says how to
mend, 1 nobody reads the output any more (`| head -1`), 128 + N stopped by signal N.
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vineppo import __version__
from vineppo.cli import commands
from vineppo.cli.arguments import path_name, seed, seed_list, word
from vineppo.machine.files import DISK_FULL
from vineppo.machine.terminal import printable
from vineppo.runs.shutdown import Stopped
from vineppo.types import UserError

KINDS = (  # of analyses, without importing them
    *("value_accuracy", "by_position", "num_vines", "action_ranking", "signal_to_noise", "gradient_variance"),
    *("temperature", "pays", "advantage_distribution", "efficiency", "generalisation", "kl"),
)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return execute(parse(argv))
    finally:
        close_output()


def execute(args: argparse.Namespace) -> int:
    try:
        check_platform()
        args.run(args)
        flush()
        return 0
    except UserError as error:
        return complain(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return 1
        return complain(explain_os_error(error))
    except Stopped as stopped:
        hint = "; continue with --resume" if hasattr(args, "resume") else ""
        print(f"vineppo: stopped by {stopped}{hint}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:  # before or after the work that a Shutdown watches over
        print("vineppo: stopped by SIGINT", file=sys.stderr)
        return 130


def flush() -> None:
    print(end="", flush=True)  # which also does where the output was closed from the start, and sys.stdout is None


def nobody_reads() -> bool:
    """Whether the output goes into a pipe whose reader has seen enough, as after `| head -1`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # of errors and hang-ups it tells unasked
    return bool(poll.poll(0))


def close_output() -> None:
    """What can no longer be written is dropped: Python would try once more at its end, and complain for itself."""
    try:
        flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_platform() -> None:
    if sys.platform == "win32":
        raise UserError("vineppo needs Linux (macOS is untested); on Windows run it in WSL")


def complain(message: str) -> int:
    line = printable(message).replace("\n", "\\n")  # of a path, say: a complaint is one line
    print(f"vineppo: {line}", file=sys.stderr)
    return 2


def explain_os_error(error: OSError) -> str:
    """The file, what the system said of it, and what to do where there is only one thing to do."""
    reason = error.strerror or str(error) or type(error).__name__
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    if error.errno in DISK_FULL:
        return ": ".join([*named, f"{reason}; make room, then continue with --resume"])
    return ": ".join([*named, reason])


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes the overrides only where they all stand together; here they may also stand among options."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    strangers = [word for word in rest if word.startswith("-") or "=" not in word]
    if strangers or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {shlex.join(strangers or rest)}")
    if rest:
        args.overrides += rest
    return args


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vineppo",
        description="RL training of language models for reasoning, with credit that is measured: VinePPO.",
        epilog="A recipe is one TOML file; see recipes/. Any value can be overridden: credit.num_vines=3",
    )
    parser.add_argument("--version", action="version", version=f"vineppo {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_quickstart(subparsers)
    add_run(subparsers, "sft", "fine-tune a model on worked solutions", commands.run_sft)
    add_run(subparsers, "train", "train with reinforcement learning", commands.run_train)
    add_run(subparsers, "prm", "teach a process reward model what vines have measured", commands.run_prm)
    add_eval(subparsers)
    add_compare(subparsers)
    add_analyze(subparsers)
    add_report(subparsers)
    add_exact(subparsers)
    add_check_task(subparsers)
    add_config(subparsers)
    add_doctor(subparsers)
    return parser


def add_quickstart(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "quickstart",
        help="watch a tiny language model learn to reason, in minutes on a CPU",
        description="Trains a tiny Llama from scratch by SFT on the embedded task, then with VinePPO, evaluates "
        "both on held-out problems and shows what was learnt. No network, no GPU needed.",
    )
    parser.add_argument(
        "--out",
        type=path_name,
        default=Path("runs/quickstart"),
        help="folder (an earlier quickstart there is replaced; default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue one that was stopped, instead of replacing it")
    parser.add_argument("--seed", type=seed, default=0, help="same seed, same machine: same numbers (default: 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s")
    parser.set_defaults(run=commands.run_quickstart)


def add_run(subparsers: argparse._SubParsersAction, name: str, what: str, run) -> None:
    example = f"recipes/gsm8k-smollm2/{'vineppo' if name == 'train' else name}.toml"
    parser = subparsers.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}, as a recipe says.",
        epilog=f"example: vineppo {name} {example} seed=1 learner.optim.lr=2e-6 --out runs/again",
    )
    add_recipe(parser)
    parser.add_argument("--out", type=path_name, help="the run's folder (default: runs/NAME, after the recipe's name)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in that folder from its last checkpoint"
    )
    parser.set_defaults(run=run)


def add_eval(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="pass@1, pass@k and maj@k of a model, with intervals",
        description="Evaluates a model on the recipe's task as its [evaluation] section says.",
        epilog="example: vineppo eval recipes/gsm8k-smollm2/vineppo.toml --model models/smollm2-135m",
    )
    add_recipe(parser)
    parser.add_argument(
        "--model", type=word, help="evaluate this model (folder, hub name or GGUF) instead of the recipe's own"
    )
    parser.add_argument("--json", type=path_name, metavar="FILE", help="also write the result to FILE")
    parser.set_defaults(run=commands.run_eval)


def add_compare(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="run methods with several seeds and set them side by side",
        description="Runs what is missing of every recipe and seed, continues what was stopped, then writes "
        "comparison.json and comparison.md. An SFT recipe among them is run first, and the others start from it. "
        "Folders of finished runs are only read. KEY=VALUE goes to recipes that have the key, learner.* never to SFT, "
        "and NAME:KEY=VALUE to the recipe of that name.",
        epilog="example: vineppo compare recipes/compare/*.toml --seeds 0,1,2 train.num_iterations=5",
    )
    parser.add_argument("sources", nargs="+", type=word, metavar="RECIPE|RUN", help="recipes and run folders")
    parser.add_argument("--seeds", type=seed_list, default=[0], help="comma-separated (default: 0)")
    parser.add_argument("--out", type=path_name, default=Path("runs/compare"), help="folder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, cores divided among them (default: 1)")
    parser.set_defaults(run=commands.run_compare, overrides=[])


def add_report(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "report",
        help="runs, comparisons and analyses as one HTML file",
        description="Writes one HTML file that needs no network: what was trained and what came of it, every rollout's "
        "credit segment by segment with the vines that measured it, comparisons and analyses. Every run writes its "
        "own when it ends; this writes it again, or one of several sources.",
        epilog="example: vineppo report runs/quickstart runs/compare --out both.html --figures figures",
    )
    parser.add_argument(
        "sources", nargs="+", type=path_name, metavar="RUN|COMPARISON|ANALYSIS", help="folders of runs, or JSON files"
    )
    parser.add_argument(
        "--out", type=path_name, metavar="FILE", help="default: report.html in the first source's folder"
    )
    parser.add_argument("--figures", type=path_name, metavar="FOLDER", help="also every chart as SVG and PDF")
    parser.add_argument("--watch", action="store_true", help="write it again as the run goes on, until it is finished")
    parser.set_defaults(run=commands.run_report)


def add_analyze(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "analyze",
        help="the paper's analyses of values and credit, on your runs",
        description="Measures what a run's estimators are worth: against reference values of many vines, by ranking of "
        "next steps, by the variance of their gradients, and more. Every checkpoint that a run has kept is analysed. "
        "Writes KIND.json and its figures; reference values are kept, so that a stopped analysis continues.",
        epilog="example: vineppo analyze runs/quickstart/vineppo --kind value_accuracy num_problems=32",
    )
    parser.add_argument(
        "sources", nargs="+", type=word, metavar="RUN", help="folders of runs, and KEY=VALUE: how much is measured"
    )
    parser.add_argument("--kind", required=True, help=f"all, or one of {', '.join(KINDS)}")
    parser.add_argument("--out", type=path_name, help="folder (default: analysis/ in the first run's)")
    parser.add_argument(
        "--part", type=word, action="append", default=[], metavar="FILE.py:NAME",
        help="a task, engine, estimator or function of your own that the runs name; no other code of theirs is run",
    )  # fmt: skip
    parser.set_defaults(run=commands.run_analyze, overrides=[])


def add_exact(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "exact",
        help="every credit estimator against the truth, in worlds where it is known",
        description="Measures bias and variance of values, advantages and policy gradients of every estimator in small "
        "worlds, a language and chains of 8 to 32 steps, where all of them are known exactly. Three minutes on two "
        "cores.",
    )
    parser.add_argument(
        "--world", type=word, action="append", default=[], metavar="NAME",
        help="one world, in detail; may be given again (default: all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="same seed, same numbers (default: 0)")
    parser.add_argument("--batches", type=int, default=50, help="of 8 rollouts per prompt (default: %(default)s)")
    parser.add_argument("--json", type=path_name, metavar="FILE", help="also write the result to FILE")
    parser.add_argument("--figures", type=path_name, metavar="DIR", help="also draw a figure of each world into DIR")
    parser.set_defaults(run=commands.run_exact)


def add_check_task(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "check-task",
        help="does a task keep its promises, and what will the model see?",
        description="Draws problems of the recipe's task, grades their worked solutions and nothing at all, looks for "
        "cuts that depend on what follows them, and prints three prompts exactly as the model will see them, with "
        "tokens, segments and grades. Of the model only the tokenizer is loaded.",
        epilog="example: vineppo check-task recipes/gsm8k-smollm2/vineppo.toml task.path=data/gsm8k",
    )
    add_recipe(parser)
    parser.set_defaults(run=commands.run_check_task)


def add_config(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("config", help="show a recipe with every default, or the difference between two")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print a recipe, checked, with every default written out")
    add_recipe(show)
    show.set_defaults(run=commands.show_config)
    compare = actions.add_parser("diff", help="print the keys in which two recipes differ")
    compare.add_argument("left", type=path_name)
    compare.add_argument("right", type=path_name)
    compare.set_defaults(run=commands.diff_configs)


def add_doctor(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine has, and which paths are taken on it",
        description="Device, precision, kernels and extras: what will be used here, and why.",
    )
    parser.set_defaults(run=commands.run_doctor)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=path_name, help="a .toml recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, e.g. credit.num_vines=3")
