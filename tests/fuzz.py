"""The fuzz campaign: commands on what is damaged, mistyped or hostile, each in a process of its own.

Every case ends with exit code 0 and the right result, or with exit code 2 and one line that says what is wrong; never
with a traceback, a crash or a hang, never with less than it says, and never with a file changed that is not its own.

    python tests/fuzz.py --cases 1000 --out benchmarks/results/campaign
    python tests/fuzz.py --only "run folders:17"
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_cases as cases
from fuzz_arguments import fuzz_arguments
from fuzz_cases import STOPS, Base, Case, tree_of
from hostile import write_recipe
from tiny import StopAt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vineppo.machine.terminal import printable
from vineppo.models import TinyModelConfig
from vineppo.models.make import make_tiny_model, save_model

CPU_SECONDS, WALL_SECONDS = 30, 300
MEMORY = 16 << 30
NOBODY = 65534
GOOD = ("right", "refused")
OTHER_SIZE = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "ffn_size": 32, "context_size": 64}

CLASSES: dict[str, Callable[[Base, Path, random.Random], Case]] = {
    "recipes": cases.fuzz_recipes,
    "overrides": cases.fuzz_overrides,
    "data": cases.fuzz_data,
    "run folders": cases.fuzz_runs,
    "checkpoints": cases.fuzz_checkpoints,
    "models": cases.fuzz_models,
    "command lines": fuzz_arguments,
} | ({"permissions": cases.fuzz_permissions} if os.geteuid() == 0 else {})
"""Nobody may do as it likes but root, who may be somebody else."""


@dataclass(frozen=True)
class Outcome:
    name: str
    """`class:number`, which makes the same case again."""
    what: str
    argv: Sequence[str]
    verdict: str
    """right, refused, or what went wrong."""
    said: str
    """The complaint, or the end of what was printed."""


# A case, in a process of its own


def begin(case: Case, scratch: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(scratch / f".{name}", os.O_WRONLY | os.O_CREAT, 0o666), number)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(scratch)
        if case.unprivileged:
            become_nobody(scratch)
        code = run_command(case.argv)
    finally:
        os._exit(code)


def run_command(argv: Sequence[str]) -> int:
    """As the interpreter would: a traceback is exit code 1."""
    from vineppo.cli import main

    try:
        code = main(list(argv))
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def become_nobody(scratch: Path) -> None:
    for path in (scratch, *scratch.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def warm_up() -> None:
    """Everything that commands import, so that the forked processes need not, and nobody need not read it."""
    import html  # noqa: F401
    import multiprocessing.forkserver
    import multiprocessing.popen_forkserver  # noqa: F401

    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import vineppo
    from vineppo.machine import runtime

    for module in pkgutil.walk_packages(vineppo.__path__, "vineppo."):
        if module.name not in ("vineppo.engine.vllm.worker", "vineppo.engine.llama.kernels.triton"):
            importlib.import_module(module.name)
    os.environ["HF_HUB_OFFLINE"] = "1"
    runtime.prepare()
    torch.set_num_threads(1)


# What came of it


def judge(name: str, case: Case, scratch: Path, status: int | None, touched: list[str]) -> Outcome:
    out, err = (read(scratch / f".{stream}") for stream in ("stdout", "stderr"))
    complaints = [line for line in err.splitlines() if re.match(r"vineppo( \w+)*: ", line)]
    said = complaints[-1] if complaints else (err or out)[-400:]
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None or code == -signal.SIGXCPU or (code == -signal.SIGKILL and not err):
        verdict = "hang"
    elif code < 0:
        verdict = f"killed by {signal.Signals(-code).name}"
    elif "Traceback (most recent call last)" in out + err:
        verdict, said = "traceback", err.strip().splitlines()[-1] if err.strip() else out[-400:]
    elif "\x1b" in out + err:
        verdict = "escape sequence"
    elif touched:
        verdict, said = "touched what is not its own", ", ".join(touched)
    elif code == 2:
        verdict = "refused" if len(complaints) == 1 and tells(complaints[0], case.argv) else "refused without one line"
    elif code == 0:
        wrong = find_wrong(case, out)
        verdict, said = ("right", "") if wrong is None else ("silent loss", wrong)
    else:
        verdict = f"exit code {code}"
    return Outcome(name, case.what, case.argv, verdict, said)


def tells(complaint: str, argv: Sequence[str]) -> bool:
    """Whether it names something: an argument, a path, a key, a value, an option."""
    named = any(printable(arg).replace("\n", "\\n")[:60] in complaint for arg in argv[1:] if arg.strip())
    return named or re.search(r"[/'\[`]|--|\w = |\w\.\w|\\", complaint) is not None


def find_wrong(case: Case, out: str) -> str | None:
    try:
        return case.wrong(out)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): ((s := p.lstat()).st_size, s.st_mtime_ns) for p in root.rglob("*") if not p.is_dir()}


# The campaign


def run_case(name: str, base: Base, seed: int, scratch: Path) -> tuple[Case, int, dict[str, tuple[int, int]]]:
    kind = name.split(":")[0]
    scratch.mkdir()
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine\n")
    case = CLASSES[kind](base, scratch, random.Random(f"{seed} {name}"))
    kept = {path: stat for path, stat in listing(scratch).items() if Path(path).name in ("precious", "pipe")}
    return case, begin(case, scratch), kept


def run_all(names: Sequence[str], base: Base, seed: int, root: Path, *, num_jobs: int) -> Iterator[Outcome]:
    """In any order; a folder is removed as soon as its case is judged."""
    before = listing(base.root)
    waiting, running = list(names), {}
    while waiting or running:
        while waiting and len(running) < num_jobs:
            name = waiting.pop(0)
            scratch = root / re.sub(r"\W", "-", name)
            case, pid, kept = run_case(name, base, seed, scratch)
            running[pid] = (name, case, scratch, kept, time.monotonic() + WALL_SECONDS)
        time.sleep(0.005)
        for pid, (name, case, scratch, kept, deadline) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() < deadline:
                continue
            del running[pid]
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if not ended:
                os.waitpid(pid, 0)
            touched = changes(kept, {path: stat for path, stat in listing(scratch).items() if path in kept})
            touched += changes(before, before := listing(base.root))  # of no case: all are copied from there
            yield judge(name, case, scratch, status if ended else None, touched)
            shutil.rmtree(scratch, ignore_errors=True)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def make_base(root: Path) -> Base:
    """The runs that are damaged afterwards, each made in a process of its own."""
    base = Base(root)
    for kind in STOPS:
        write_recipe(base.recipe(kind), tree_of(kind, base.whole("sft")))
        must(kind, base.recipe(kind), base.whole(kind), None)
        if STOPS[kind] is not None:
            must(kind, base.recipe(kind), base.stopped(kind), STOPS[kind])
    other = tree_of("sft", root) | {"model": {"from_scratch": OTHER_SIZE}}
    write_recipe(root / "other.toml", other)
    must("other", root / "other.toml", root / "whole" / "other", None)
    make_reader(base.reader())
    return base


def make_reader(folder: Path) -> None:
    """Its tokens are bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*sorted(alphabet), "<eos>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    size = TinyModelConfig(num_layers=1, hidden_size=16, num_heads=2, ffn_size=16, context_size=256)
    save_model(make_tiny_model(fast, size, 0), fast, folder)


def must(kind: str, recipe: Path, out: Path, stop: int | None) -> None:
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = run_until(recipe, out, stop)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (0 if stop is None else 143), f"{kind}: exit code {code}"


def run_until(recipe: Path, out: Path, stop: int | None) -> int:
    from vineppo.methods import load_recipe
    from vineppo.methods.run import run_recipe
    from vineppo.runs.shutdown import Stopped

    try:
        run_recipe(load_recipe(recipe), out, sinks=[StopAt(stop)], echo=lambda _: None)
    except Stopped as stopped:
        return stopped.exit_code
    return 0


def case_names(num_cases: int) -> list[str]:
    kinds = list(CLASSES)
    return [f"{kinds[i % len(kinds)]}:{i // len(kinds)}" for i in range(num_cases)]


# The table


def summary(outcomes: Sequence[Outcome], *, seed: int, seconds: float) -> dict[str, Any]:
    from vineppo.machine import runtime

    table = {kind: dict(Counter(o.verdict for o in outcomes if o.name.split(":")[0] == kind)) for kind in CLASSES}
    return {
        "cases": len(outcomes),
        "seed": seed,
        "seconds": round(seconds),
        "environment": runtime.describe_machine(runtime.pick_device("cpu")),
        "outcomes": table,
        "failed": [
            vars(outcome) | {"argv": ascii(outcome.argv)} for outcome in outcomes if outcome.verdict not in GOOD
        ],
    }


def markdown(result: dict[str, Any]) -> str:
    bad = sorted({verdict for row in result["outcomes"].values() for verdict in row} - set(GOOD))
    columns = [*GOOD, *bad]
    rows = [
        [kind, str(sum(row.values())), *(str(row.get(column, 0)) for column in columns)]
        for kind, row in result["outcomes"].items()
    ]
    lines = [["class", "cases", *columns], ["---", *["---:"] * (len(columns) + 1)], *rows]
    environment = result["environment"]
    place = f"commit {environment.get('commit')}, {environment.get('device')}, seed {result['seed']}"
    return (
        f"# Fuzz campaign: {result['cases']} cases\n\n"
        f"{place}. right: exit code 0 and the result that it should be. refused: exit code 2 and one line.\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="CLASS:NUMBER")
    parser.add_argument("--out", type=Path, help="folder for fuzz.md and fuzz.json")
    args = parser.parse_args()
    warm_up()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "base").mkdir()
        base = make_base(root / "base")
        outcomes = []
        for outcome in run_all(args.only or case_names(args.cases), base, args.seed, root, num_jobs=args.jobs):
            outcomes.append(outcome)
            if outcome.verdict not in GOOD or args.only:
                print(f"{outcome.name}\n  {outcome.what}\n  {outcome.verdict}: {outcome.said!a}", flush=True)
    result = summary(outcomes, seed=args.seed, seconds=time.monotonic() - started)
    print(markdown(result))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.out / "fuzz.md").write_text(markdown(result))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
