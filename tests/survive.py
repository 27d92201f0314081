"""Runs tiny trainings twice: once whole, once killed with SIGKILL again and again and resumed; both must be the same.

Called by a test with a few kills. The whole campaign, every method on every task, beside two busy loops:

    python tests/survive.py FOLDER --kills 200 --load 2 --report campaign

Every life is a process of its own, forked here before torch has started a thread, so that it begins at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny import MODULO_3, RECIPE, SHAPE, recipe_of

from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.methods.run import run_recipe
from vineppo.models import TinyModelConfig
from vineppo.models.make import make_symbol_tokenizer, make_tiny_model, save_model
from vineppo.runs.checkpoint import checkpoint_folders
from vineppo.runs.shutdown import Stopped

COMMON = {key: RECIPE[key] for key in ("engine", "evaluation", "checkpoint")} | {"grading": {"timeout_s": 60.0}}
LOOP = {"sampling": RECIPE["sampling"], "train": RECIPE["train"] | {"num_iterations": 6}, "learner": RECIPE["learner"]}
OFFLINE = {
    "sampling": {"prompts_per_iteration": 6, "group_size": 8, "max_new_tokens": 12},
    "learner": {"optim": {"lr": 1e-3}},
}
VALIDATION = {"split": "validation", "num_problems": 8, "num_samples": 2, "max_new_tokens": 12}
SFT = {
    "sft": {"num_problems": 128, "num_epochs": 4, "minibatch_size": 8},
    "learner": {"optim": {"lr": 2e-2, "schedule": "constant"}},
    "evaluation": RECIPE["evaluation"] | {"every": 2},
}
METHODS: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "vineppo": LOOP | {"credit": RECIPE["credit"]},
    "ppo": LOOP | {"credit": {"name": "ppo", "critic": {"optim": {"lr": 1e-3}}}},
    "grpo": LOOP | {"credit": {"name": "grpo"}},
    "rloo": LOOP | {"credit": {"name": "rloo"}},
    "restem": OFFLINE | {"restem": {"num_iterations": 4, "num_epochs": 2, "validation": VALIDATION}},
    "dpo": OFFLINE | {"dpo": {"num_epochs": 4, "minibatch_size": 8, "max_pairs_per_problem": 8}},
}
TEXTS = {
    "gsm8k": ("question", "answer", "{x}+{y}?", "#### {z}"),
    "math": ("problem", "solution", "{x}+{y}?", "$\\boxed{{{z}}}$"),
}
"""What problem and solution are called, and how they are written; the sums modulo 2 are soon half right."""
TASKS: dict[str, dict[str, Any]] = {
    "arithmetic": MODULO_3,
    "gsm8k": {"name": "gsm8k", "prompt_template": "{question}", "solution_template": "{solution}",
              "num_validation": 20},
    "math": {"name": "math", "prompt_template": "{problem}", "solution_template": "{solution}",
             "num_validation": 20},
}  # fmt: skip
CLOCK = {"timings.jsonl", "environment.json", "vineppo.lock"}
"""What the clock, the machine and a process id decide."""
KILLS_PER_RUN = 10


class Campaign:
    def __init__(self, root: Path, seed: int):
        self.root, self.rng = root, random.Random(seed)
        self.whole_s: dict[str, float] = {}

    def tree(self, case: str) -> dict[str, Any]:
        task, method = case.split("/")
        model = self.start(task) if method != "sft" else self.first_model(task)
        config = TASKS[task] | ({"path": str(self.write_data(task))} if task in TEXTS else {})
        return COMMON | METHODS[method] | {"name": f"{task}-{method}", "task": config, "model": model}

    def first_model(self, task: str) -> dict[str, Any]:
        if task not in TEXTS:
            return {"from_scratch": SHAPE}
        folder = self.root / "first"
        if not folder.exists():
            fork(lambda: save_first_model(folder))
        return {"name": str(folder)}

    def start(self, task: str) -> dict[str, Any]:
        folder = self.whole(f"{task}/sft")
        return {"name": str(checkpoint_folders(folder / "checkpoints")[-1])}

    def write_data(self, task: str) -> Path:
        problem, solution, asked, solved = TEXTS[task]
        folder = self.root / task
        folder.mkdir(exist_ok=True)
        for split, first in (("train", 0), ("test", 15)):
            sums = [{"x": x, "y": y, "z": (x + y) % 2} for x in range(first, first + 15) for y in range(12)]
            rows = [{problem: asked.format(**each), solution: solved.format(**each)} for each in sums]
            rows = rows[: 20 if split == "test" else None]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def whole(self, case: str) -> Path:
        """The undisturbed run, made once."""
        folder = self.root / "whole" / case
        if case not in self.whole_s:
            tree = self.tree(case)
            started = time.monotonic()
            assert end(begin(tree, folder)) == 0, f"{case} fails undisturbed"
            self.whole_s[case] = time.monotonic() - started
        return folder

    def survive(self, case: str, max_kills: int) -> dict[str, Any]:
        """One run that is killed up to so often, and what differs from the undisturbed one."""
        whole, killed, tree = self.whole(case), self.root / "killed" / case, self.tree(case)
        kills = kills_while_saving = lives = 0
        finished = False
        while kills < max_kills and not finished:
            lives += 1
            pid = begin(tree, killed)
            if lives % 3 == 0:
                wait_until(lambda: saving(killed), pid, self.whole_s[case])
            else:
                wait_until(lambda: False, pid, self.rng.uniform(0.02, 0.9) * self.whole_s[case])
            during_save = saving(killed)
            os.kill(pid, signal.SIGKILL)
            code = end(pid)
            finished = code != -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), f"{case}: exit code {code}"
            kills += not finished
            kills_while_saving += during_save and not finished
        assert end(begin(tree, killed)) == 0, f"{case} cannot be resumed"
        found = differences(whole, killed)
        if not found:
            shutil.rmtree(killed)
        return {"case": case, "kills": kills, "kills_while_saving": kills_while_saving, "differences": found}


def save_first_model(folder: Path) -> None:
    symbols = [chr(code) for code in range(32, 127)] + ["\n"]
    tokenizer = make_symbol_tokenizer(symbols)
    save_model(make_tiny_model(tokenizer, TinyModelConfig(**SHAPE), seed=0), tokenizer, folder)


def fork(work: Callable[[], object]) -> None:
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    assert end(pid) == 0


def begin(tree: Mapping[str, Any], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)
    resume = (folder / "recipe.toml").exists()
    try:
        run_recipe(recipe_of(tree), folder, resume=resume, echo=lambda _: None)
    except Stopped as stopped:
        os._exit(stopped.exit_code)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".unfinished-*"))


def wait_until(condition: Callable[[], bool], pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (
        not condition()
        and time.monotonic() < deadline
        and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.0005)


def contents(run: Path) -> dict[str, bytes | None]:
    """Every path below the run's folder but for what the clock decides; folders are None."""
    return {
        str(path.relative_to(run)): path.read_bytes() if path.is_file() else None
        for path in run.rglob("*")
        if path.name not in CLOCK
    }


def differences(whole: Path, killed: Path) -> list[str]:
    ours, theirs = contents(whole), contents(killed)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name, 0) != theirs.get(name, 0))


@contextmanager
def busy(num_loops: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_loops)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def summarize(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for case in dict.fromkeys(run["case"] for run in runs):
        of_case = [run for run in runs if run["case"] == case]
        sums = {key: sum(run[key] for run in of_case) for key in ("kills", "kills_while_saving")}
        same = sum(not run["differences"] for run in of_case)
        rows.append({"case": case, "runs": len(of_case), **sums, "identical": same})
    return rows


def to_markdown(summary: Mapping[str, Any]) -> str:
    columns = ("case", "runs", "kills", "kills_while_saving", "identical")
    names = ("task/method", "runs", "kill -9", "of these while saving", "byte-identical at the end")
    rows = [[str(row[column]) for column in columns] for row in (*summary["rows"], summary["total"])]
    lines = [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]
    head = (
        f"commit {summary['commit']}, {summary['device']}, beside {summary['load']} busy loops, seed {summary['seed']}."
    )
    return "\n".join([head, "", *lines]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    every = [f"{task}/{method}" for task in TASKS for method in METHODS]
    parser = argparse.ArgumentParser(description="Kills runs at random moments and compares what comes of them.")
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--kills", type=int, default=10, help="at least so many (default: %(default)s)")
    parser.add_argument("--kills-per-run", type=int, default=KILLS_PER_RUN, help="at most (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", default=every, choices=every, metavar="TASK/METHOD", help="default: all")
    parser.add_argument("--load", type=int, default=0, help="busy loops beside it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="writes PATH.md and PATH.json")
    args = parser.parse_args(argv)
    campaign, runs = Campaign(args.folder, args.seed), []
    with busy(args.load):
        while (rest := args.kills - sum(run["kills"] for run in runs)) > 0 or len(runs) < len(args.cases):
            case = args.cases[len(runs) % len(args.cases)]
            runs.append(campaign.survive(case, min(args.kills_per_run, max(rest, 1))))
            print(runs[-1], file=sys.stderr, flush=True)
            if runs[-1]["differences"]:
                break  # both folders stay for whoever looks into it
    rows = summarize(runs)
    total = {"case": "all"} | {key: sum(row[key] for row in rows) for key in rows[0] if key != "case"}
    different = [run for run in runs if run["differences"]]
    facts = describe_machine(pick_device("cpu"))
    summary = {key: facts[key] for key in ("commit", "device")}
    summary |= {"load": args.load, "seed": args.seed, "rows": rows, "total": total, "different": different}
    if args.report:
        args.report.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
        args.report.with_suffix(".md").write_text(to_markdown(summary))
    print(json.dumps(summary))
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
