"""The whole program in minutes on a CPU: a tiny Llama learns chains of arithmetic by SFT, then by VinePPO."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vineppo.config import read_toml
from vineppo.machine.files import PART, read_json, read_lines, write_json
from vineppo.machine.limits import peak_memory_mb
from vineppo.machine.terminal import printable
from vineppo.methods.run import run_recipe
from vineppo.methods.sft import SFTRecipe
from vineppo.methods.train import TrainRecipe
from vineppo.report import try_report
from vineppo.runs.lock import LOCK, lock_folder
from vineppo.runs.progress import Bar, echo_above, echo_on, make_progress
from vineppo.runs.recipe import make_recipe
from vineppo.runs.run_folder import RECIPE, REPORT, RESULT, find_foreign, is_report, remove_run
from vineppo.types import UserError

TASK = {"name": "arithmetic", "num_steps": [8, 12], "slip_share": 0.3, "num_test": 1000}
ENGINE = {"name": "torch", "max_batch": 512, "max_kv_tokens": 131_072}
EVALUATION = {"num_problems": 600, "num_samples": 4, "max_new_tokens": 128, "every": 0}
SFT = {
    "task": TASK,
    "engine": ENGINE,
    "model": {"from_scratch": {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "ffn_size": 384}},
    "sft": {"num_problems": 6_400, "num_epochs": 1, "minibatch_size": 16},
    "learner": {"optim": {"lr": 2e-3, "schedule": "cosine", "warmup_ratio": 0.05}},
    "evaluation": EVALUATION,
    "checkpoint": {"every": 0},
}
VINEPPO = {
    "task": TASK,
    "engine": ENGINE,
    "sampling": {"prompts_per_iteration": 16, "group_size": 8, "max_new_tokens": 128},
    "credit": {"name": "vineppo", "num_vines": 9},
    "train": {"num_iterations": 10, "num_epochs": 2, "minibatch_size": 64},
    "learner": {"kl_coef": 1e-4, "optim": {"lr": 1e-4, "schedule": "constant", "warmup_ratio": 0.0}},
    "evaluation": EVALUATION,
    "checkpoint": {"every": 1, "keep_last": 1},
}
PARTS = ("sft", "vineppo")


def quickstart(
    out: Path, *, seed: int = 0, device: str = "auto", resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Runs it, shows it, and returns what result.json holds. `resume` continues one that was stopped."""
    console = console or Console()
    refuse_other(out)
    with lock_folder(out, echo_on(console)):
        if not resume:
            remove_earlier(out)
        elif not any(is_begun(out / part) for part in PARTS):
            raise UserError(f"{out}: no quickstart to resume")
        console.print("A tiny Llama learns chains of arithmetic modulo 10: first from worked solutions,")
        console.print("a third of whose facts are unreliable (SFT), then from its own answers with")
        console.print("measured credit (VinePPO).\n")
        started = time.perf_counter()
        run_both(out, {"seed": seed, "device": device}, console)
        result = summarize(out, seed=seed, seconds=None if resume else time.perf_counter() - started)
        write_json(out / RESULT, result)
        show(console, out, result)
        echo_on(console)(try_report(out))
    return result


def run_both(out: Path, common: Mapping[str, Any], console: Console) -> None:
    """Each from where it is."""
    with make_progress(console) as progress:
        bar = Bar(progress, "1/2 SFT (optimizer steps)", print_every=100)
        sft = make_recipe({"name": "quickstart-sft", **common, **SFT}, kind=SFTRecipe, source="quickstart")
        echo = echo_above(progress)
        policy = run_recipe(
            sft, out / "sft", resume=is_begun(out / "sft"), sinks=[bar], echo=echo, on_start=bar.set_total
        )
        rl = {"name": "quickstart-vineppo", **common, **VINEPPO, "model": {"name": str(policy)}}
        recipe = make_recipe(rl, kind=TrainRecipe, source="quickstart")
        bar = Bar(progress, "2/2 VinePPO (iterations)", recipe.train.num_iterations)
        run_recipe(recipe, out / "vineppo", resume=is_begun(out / "vineppo"), sinks=[bar], echo=echo)


def is_begun(part: Path) -> bool:
    return (part / RECIPE).exists()


def refuse_other(out: Path) -> None:
    """Raises UserError where there is anything but an earlier quickstart's own, before it is touched."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    for path in sorted(out.iterdir()):
        if not is_own(path):
            inside = find_foreign(path) if path.name in PARTS and not path.is_symlink() else None
            place = (inside or path).relative_to(out)
            raise UserError(f"{out} holds more than an earlier quickstart ({place}); choose another --out")
    names = {path.name for path in out.iterdir()}
    if names - {LOCK} and not names & {*PARTS, RESULT}:
        raise UserError(f"{out} is not empty and no earlier quickstart; choose another --out")


def is_own(path: Path) -> bool:
    """Whether a quickstart has made this part of its folder, and nobody has added to it."""
    if path.is_symlink():
        return False
    if path.name in PARTS:
        return path.is_dir() and find_foreign(path) is None and is_own_run(path)
    if not path.is_file():
        return False
    if path.name == RESULT:
        return is_summary(path)
    return path.name in (LOCK, RESULT + PART, REPORT + PART) or (path.name == REPORT and is_report(path))


def is_own_run(part: Path) -> bool:
    """It bears our name; or it holds no more than a run does before it has one."""
    if is_begun(part):
        return read_toml(part / RECIPE).get("name") == f"quickstart-{part.name}"
    return {LOCK} <= {path.name for path in part.iterdir()} <= {LOCK, RECIPE + PART}


def is_summary(path: Path) -> bool:
    try:
        return {*PARTS, "seconds", "tokens", "seed"} <= read_json(path).keys()
    except UserError:
        return False


def remove_earlier(out: Path) -> None:
    """An earlier quickstart's own, and nothing else; the folder itself stays."""
    for part in PARTS:
        if (out / part).exists():
            with lock_folder(out / part, lambda text: None):
                pass  # nobody works in it
            remove_run(out / part)
    for name in (RESULT, REPORT, RESULT + PART, REPORT + PART):
        (out / name).unlink(missing_ok=True)


def summarize(out: Path, *, seed: int, seconds: float | None) -> dict[str, Any]:
    """`seconds` that all of it took, or None where it was stopped in between: then its phases are added up."""
    metrics = read_lines(out / "sft" / "metrics.jsonl") + read_lines(out / "vineppo" / "metrics.jsonl")
    tokens = {kind: sum(line.get(f"tokens/{kind}", 0) for line in metrics) for kind in ("policy", "vine", "eval")}
    sft, rl = (read_lines(out / name / "timings.jsonl") for name in ("sft", "vineppo"))
    spent = {
        "sft": seconds_of(sft, "update"),
        "rl": seconds_of(rl, "sample", "credit", "score", "update"),
        "eval": seconds_of(sft + rl, "evaluate"),
    }
    spent["total"] = sum(spent.values()) if seconds is None else seconds
    environment = read_json(out / "vineppo" / "environment.json")
    return {
        "sft": accuracy(out / "sft"),
        "vineppo": accuracy(out / "vineppo"),
        "seconds": spent,
        "tokens": tokens,
        "peak_memory_mb": peak_memory_mb(),
        "seed": seed,
        "device": environment["device"],
        "commit": environment["commit"],
    }


def seconds_of(lines: Sequence[Mapping[str, Any]], *phases: str) -> float:
    return sum(line.get(f"seconds/{phase}", 0.0) for line in lines for phase in phases)


def accuracy(run: Path) -> dict[str, Any]:
    result = read_json(run / RESULT)
    return {key: result[key] for key in ("pass@1", "ci95", "num_problems")}


def show(console: Console, out: Path, result: Mapping[str, Any]) -> None:
    console.print()
    console.print(accuracy_table(result))
    last = max((out / "vineppo" / "rollouts").iterdir())
    rollouts = [json.loads(line) for line in gzip.decompress(last.read_bytes()).splitlines()]
    num_vines = VINEPPO["credit"]["num_vines"]
    console.print(f"\nCredit in the last iteration: V is the mean reward of {num_vines} continuations from")
    console.print("that point, and a step's advantage is how much it changed V; \u00b1 one standard error.\n")
    console.print(Group(*(worked(rollout) for rollout in two_rollouts(rollouts))))
    for name, path in (("folder", out), ("model", out / "vineppo" / "checkpoints"), ("numbers", out / "result.json")):
        echo_on(console)(f"{name:<8} {path}")


def accuracy_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="Held-out problems")
    for column in ("policy", "pass@1", "95 % interval", "problems"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, key in (("after SFT", "sft"), ("after VinePPO", "vineppo")):
        low, high = result[key]["ci95"]
        numbers = f"{result[key]['pass@1']:.1%}", f"{low:.1%} to {high:.1%}", str(result[key]["num_problems"])
        table.add_row(name, *numbers)
    return table


def two_rollouts(rollouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The wrong one with the costliest step, and the right one with the most valuable."""
    wrong = [rollout for rollout in rollouts if rollout["reward"] == 0]
    right = [rollout for rollout in rollouts if rollout["reward"] > 0]
    chosen = []
    if wrong:
        chosen.append(min(wrong, key=lambda rollout: min(rollout["advantages"])))
    if right:
        chosen.append(max(right, key=lambda rollout: max(rollout["advantages"])))
    return chosen


def worked(rollout: Mapping[str, Any]) -> Panel:
    """A rollout, a segment per line: its text, V before and after it, and its advantage, in red or green where that is
    more than its standard error."""
    table = Table(box=None, pad_edge=False)
    for column in ("step", "V before", "V after", "advantage"):
        table.add_column(column, justify="left" if column == "step" else "right")
    values, errors = rollout["values"], [*(rollout["standard_errors"] or ()), 0.0]
    states = list(zip(values, errors, strict=False))
    for segment, (before, after), advantage in zip(
        rollout["segments"], pairwise(states), rollout["advantages"], strict=False
    ):
        error = math.hypot(before[1], after[1])  # the vines of two states are drawn apart
        color = "dim" if abs(advantage) <= error else "red" if advantage < 0 else "green"
        step = Text(printable(segment.strip()) or f"<{rollout['finish_reason']}>", style=color)
        change = Text(with_error(advantage, error, sign="+"), style=color)
        table.add_row(step, with_error(*before), with_error(*after), change)
    verdict = "right" if rollout["reward"] > 0 else f"wrong, the answer is {rollout['answer']}"
    title, subtitle = (Text(printable(text.strip())) for text in (rollout["prompt"], verdict))
    return Panel(table, title=title, subtitle=subtitle, width=78)


def with_error(value: float, error: float, sign: str = "") -> str:
    return f"{value:{sign}.2f} \u00b1 {error:.2f}"
