"""What other work on the machine costs: steps beside 0, 1, 2, 4 and 8 processes that compute without end.

    python benchmarks/busy.py --out benchmarks/results/busy-cpu.json

Three kinds of steps: one of the quickstart's SFT, one of the same with a wider model (four of SmolLM2-135M's layers),
and a call that samples vines of a model of the quickstart's size with the kernels in C++. Each is measured with threads
that wait for each other as libgomp has it by itself and as vineppo sets it. All processes live from the first round to
the last and compute in turn, SECONDS at a time, so that a slow moment of the machine meets all of them.

A step's seconds, by the clock and of processors, are those of a round divided by its steps: a stall counts in full.
`wall_over_fair`: T threads beside L others on C cores get C / (T + L) of the cores where that is less than one; the
fair time is libgomp's idle one divided by that. `processor_over_idle` is relative to libgomp's idle one too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

LOADS = (0, 1, 2, 4, 8)
ROUNDS = 3
SECONDS, WARM_UP = 4.0, 1.0
WAITING: dict[str, dict[str, str]] = {"libgomp": {"GOMP_SPINCOUNT": "300000"}, "vineppo": {}}  # what it is by default
VARIABLES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
WIDE = {"num_layers": 4, "hidden_size": 576, "num_heads": 9, "ffn_size": 1536}
TINY: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 512,
}  # fmt: skip
NUM_PROMPTS, NUM_VINES, PROMPT_TOKENS, NEW_TOKENS = 48, 9, 32, 32

Key = tuple[str, str]  # kind of steps, way of waiting
Round = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", choices=STEPS, help=argparse.SUPPRESS)  # what one of the measured processes does
    options = parser.parse_args()
    if options.steps:
        with suppress(EOFError):  # no more rounds
            STEPS[options.steps](Rounds())
        return
    processes = {(kind, name): start(kind, variables) for kind in STEPS for name, variables in WAITING.items()}
    for process in processes.values():
        measure(process, WARM_UP)
    rounds = {load: measure_beside(load, processes) for load in LOADS}
    for process in processes.values():
        process.communicate()
    result = summarize(rounds)
    print(table(result["steps"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def start(kind: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, str(Path(__file__)), "--steps", kind]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**environ, **variables}, stdin=pipe, stdout=pipe, text=True, bufsize=1)


def measure_beside(load: int, processes: Mapping[Key, subprocess.Popen[str]]) -> dict[Key, list[Round]]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    found: dict[Key, list[Round]] = {key: [] for key in processes}
    try:
        for _ in range(ROUNDS):
            for key, process in processes.items():
                found[key].append(measure(process, SECONDS))
    finally:
        for other in others:
            other.kill()
            other.wait()
    return found


def measure(process: subprocess.Popen[str], seconds: float) -> Round:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{seconds}\n")
    return json.loads(process.stdout.readline())


class Rounds:
    """A sink that waits for a line with seconds before the next step begins, and answers when they are over."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        self.seconds, self.num_steps, self.began = float(line), 0, (time.perf_counter(), time.process_time())

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.num_steps += 1
        wall, processor = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        if wall >= self.seconds:
            found = {"wall": wall / self.num_steps, "processor": processor / self.num_steps, "steps": self.num_steps}
            print(json.dumps(found), flush=True)
            self.begin()

    def close(self) -> None:
        pass


def sft_steps(rounds: Rounds, model: Mapping[str, Any] | None = None, minibatch_size: int = 16) -> None:
    from vineppo.machine import runtime  # first of all, as in the program

    runtime.prepare()
    from vineppo.cli.quickstart import SFT
    from vineppo.methods.run import run_recipe
    from vineppo.methods.sft import SFTRecipe
    from vineppo.runs.recipe import make_recipe

    sizes = {
        "model": {"from_scratch": model} if model else SFT["model"],
        "sft": {**SFT["sft"], "num_epochs": 100, "minibatch_size": minibatch_size},
    }
    recipe = make_recipe({**SFT, "name": "busy", "device": "cpu", **sizes}, kind=SFTRecipe, source=__file__)
    with tempfile.TemporaryDirectory() as folder:
        run_recipe(recipe, Path(folder) / "run", sinks=[rounds], echo=lambda _: None)


def wide_sft_steps(rounds: Rounds) -> None:
    sft_steps(rounds, WIDE, minibatch_size=4)


def vine_steps(rounds: Rounds) -> None:
    from vineppo.machine import runtime

    runtime.prepare()
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from vineppo.engine.llama.engine import TorchEngine
    from vineppo.types import Request, SamplingParams

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY)).eval()
    config = TorchEngine.Config(kernels="native", max_batch=512)
    engine = TorchEngine(config, model.config, model.state_dict(), tokenizer=None, eos_ids=frozenset())
    prompts = torch.randint(TINY["vocab_size"], (NUM_PROMPTS, PROMPT_TOKENS)).tolist()
    requests = [
        Request(tuple(prompt), NEW_TOKENS, NUM_VINES * i + k)
        for i, prompt in enumerate(prompts)
        for k in range(NUM_VINES)
    ]
    while True:
        engine.generate(requests, SamplingParams(), purpose="vine", keep=False)
        rounds.write(0, {})


STEPS = {"sft": sft_steps, "wide sft": wide_sft_steps, "vines": vine_steps}


def summarize(rounds: Mapping[int, Mapping[Key, list[Round]]]) -> dict[str, Any]:
    import torch

    from vineppo.machine import runtime
    from vineppo.machine.limits import available_cores

    facts, cores = runtime.describe_machine(torch.device("cpu")), available_cores()
    steps: dict[str, Any] = {kind: {} for kind in STEPS}
    for kind in STEPS:
        idle = rounds[0][kind, "libgomp"]
        for load, found in rounds.items():
            fair = middle(idle, "wall") * max(1.0, (facts["num_threads"] + load) / cores)
            steps[kind][str(load)] = {"fair_wall": fair} | {
                name: {
                    **{clock: [one[clock] for one in found[kind, name]] for clock in ("wall", "processor", "steps")},
                    "wall_over_fair": middle(found[kind, name], "wall") / fair,
                    "processor_over_idle": middle(found[kind, name], "processor") / middle(idle, "processor"),
                }
                for name in WAITING
            }
    return {**facts, "num_available_cores": cores, "rounds": ROUNDS, "seconds": SECONDS, "steps": steps}


def middle(rounds: list[Round], clock: str) -> float:
    return median(one[clock] for one in rounds)


def table(steps: Mapping[str, Any]) -> str:
    lines = [f"{'steps':10}{'others':>6}  {'waiting':10}{'seconds':>9}{'/ fair':>8}{'of processors':>15}{'/ idle':>8}"]
    for kind, loads in steps.items():
        for load, at in loads.items():
            for name in WAITING:
                found = at[name]
                wall, processor = f"{median(found['wall']):.3f}", f"{median(found['processor']):.3f}"
                ratios = found["wall_over_fair"], found["processor_over_idle"]
                line = f"{kind:10}{load:>6}  {name:10}{wall:>9}{ratios[0]:8.2f}{processor:>15}{ratios[1]:8.2f}"
                spread = f"[{min(found['wall']):.3f}, {max(found['wall']):.3f}]"
                lines.append(f"{line}   {spread} n = {sum(found['steps'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
