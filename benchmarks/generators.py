"""Every generator of the package reasoning-gym as a task: whether it keeps a task's promises, and what it costs.

    python benchmarks/generators.py --out benchmarks/results/reasoning-gym.json
    python benchmarks/generators.py acre maze                  measures these anew, in the same file
    python benchmarks/generators.py --page                  writes the table of docs/reasoning-gym.md from that file

50 training problems of each, twice: in two processes whose sets and dicts of texts have different orders
(PYTHONHASHSEED). A generator that computes for longer than --limit seconds of processor time is given up. About a
quarter of an hour on an idle core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vineppo.machine.files import read_json, write_json
from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.tasks.reasoning_gym import ReasoningGym, ReasoningGymConfig
from vineppo.types import Problem, UserError

ROOT = Path(__file__).parent.parent
RESULT, PAGE = ROOT / "benchmarks" / "results" / "reasoning-gym.json", ROOT / "docs" / "reasoning-gym.md"
NUM_PROBLEMS = 50
GARBAGE = ("?", "None", "[", "{}", "-1", "1/0", "a b c", "()", "nan", "x = y", "0 0\n0")
KNOBS: dict[str, dict[str, Any]] = {
    "acre": {"size": 1000},
    "sokoban": {"size": 1000},
    "word_ladder": {"size": 1000},
    "composite": {"options": {"datasets": [{"name": "chain_sum", "weight": 1.0, "config": {}}]}},
}
"""Of those that are not made without, or only in a long time."""


def look_at(name: str) -> dict[str, Any]:
    begun = time.process_time()
    config = {"dataset": name, "num_test": 1, "num_validation": 0} | KNOBS.get(name, {})
    task = ReasoningGym(ReasoningGymConfig.model_validate(config))
    problems = task.sample(NUM_PROBLEMS, seed=0)
    seconds = time.process_time() - begun
    with_gold = [problem for problem in problems if problem.answer]
    garbage = [(problem, f"<answer>{text}</answer>") for problem in problems[:5] for text in GARBAGE]
    return {
        "digest": digest(problems),
        "repeats here": task.sample(NUM_PROBLEMS, seed=0) == problems,
        "with gold": len(with_gold),
        "gold is right": sum(task.grade(problem, problem.solution).verdict == "correct" for problem in with_gold),
        "answers of lines": sum("\n" in problem.answer for problem in problems),
        "garbage": len(garbage),
        "garbage is right": sum(task.grade(*pair).verdict == "correct" for pair in garbage),
        "garbage breaks": sum(task.grade(*pair).verdict == "unparseable" for pair in garbage),
        "seconds": round(seconds, 2),
    }


def digest(problems: list[Problem]) -> str:
    texts = [(problem.prompt, problem.answer) for problem in problems]
    return hashlib.blake2b(repr(texts).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def look_within(limit: int, name: str) -> dict[str, Any]:
    """In a process of its own, which ends when it has computed for so long."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_look, args=(theirs, limit, name))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        slow = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        return {"error": f"more than {limit} s" if slow else f"ended with {process.exitcode}"}
    process.join()
    return found


def send_look(connection: Connection, limit: int, name: str) -> None:
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + limit, spent + limit))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        connection.send(look_at(name))
    except UserError as error:
        connection.send({"error": str(error)})


def look_at_all(limit: int, names: list[str]) -> None:
    """A line of JSON for each."""
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]

    for name in sorted(names or DATASETS):
        print(json.dumps({"name": name, **look_within(limit, name)}), flush=True)


def measure(limit: int, names: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--limit", str(limit), "--lines", *names]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in "12"
    ]
    first, second = ([json.loads(line) for line in process.communicate()[0].splitlines()] for process in processes)
    generators = {}
    for one, other in zip(first, second, strict=True):
        name, _ = one.pop("name"), other.pop("name")
        if "error" not in one and "error" not in other:
            one["repeats"] = one.pop("repeats here") and one["digest"] == other["digest"]
            del one["digest"]
        generators[name] = one if "error" in one or "error" not in other else other
    return {
        **describe_machine(pick_device("cpu")),
        "package": version("reasoning-gym"),
        "num_problems": NUM_PROBLEMS,
        "limit_s": limit,
        "generators": generators,
    }


def rows(result: dict[str, Any]) -> list[str]:
    """Of the page's table."""
    lines = ["| generator | gold is right | repeats | answer | garbage right, broke | s |", "|---|---|---|---|---|---|"]
    for name, found in result["generators"].items():
        if "error" in found:
            lines.append(f"| `{name}` | {found['error']} | | | | |")
            continue
        gold = f"{found['gold is right']} of {found['with gold']}" if found["with gold"] else "no gold"
        shape = "lines" if found["answers of lines"] else "one line"
        garbage = f"{found['garbage is right']}, {found['garbage breaks']} of {found['garbage']}"
        repeats = "yes" if found["repeats"] else "no"
        lines.append(f"| `{name}` | {gold} | {repeats} | {shape} | {garbage} | {found['seconds']:.1f} |")
    return lines


def write_page(result: dict[str, Any]) -> None:
    text = PAGE.read_text()
    table = "\n".join(rows(result))
    PAGE.write_text(re.sub(r"\| generator \|.*?\n(?=\n|\Z)", lambda _: table + "\n", text, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="generators; all of them by default")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lines:
        look_at_all(options.limit, options.names)
    elif options.page:
        write_page(read_json(options.out))
    else:
        measured = measure(options.limit, options.names)
        if options.names:
            measured["generators"] = read_json(options.out)["generators"] | measured["generators"]
        write_json(options.out, measured)


if __name__ == "__main__":
    main()
