"""Whether grading waits behind sampling: a call of an environment whose answers are graded while others are written.

    python benchmarks/grading.py --out benchmarks/results/grading-cpu.json

The quickstart's tiny model, untrained, writes; a task that takes MILLISECONDS of another core for each answer grades in
worker processes. Seconds of sampling without grading, of grading alone, of both one after the other, and of both as the
environment does it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from vineppo.engine import engine_inputs
from vineppo.engine.llama.engine import TorchEngine
from vineppo.environment import Environment, State
from vineppo.grading import Grader, GradingConfig
from vineppo.machine.runtime import describe_machine, pick_device, tune_allocator
from vineppo.models.make import make_symbol_tokenizer
from vineppo.protocols import Task
from vineppo.tasks.arithmetic import Arithmetic
from vineppo.types import Grade, Problem, Request, SamplingParams

SIZE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8,
    "max_position_embeddings": 512, "eos_token_id": 5,
}  # fmt: skip
NUM_ANSWERS, MAX_TOKENS, MILLISECONDS = 600, 200, 5.0


class SlowTask(Arithmetic):
    """Grades by waiting, as one that asks another core or another machine does."""

    isolate = True

    def grade(self, problem: Problem, response: str) -> Grade:
        time.sleep(MILLISECONDS / 1000)
        return Grade(float(len(response) % 2), "correct" if len(response) % 2 else "wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tune_allocator()
    torch.manual_seed(0)
    tokenizer = make_symbol_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789 .\n")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE)).eval()
    engine = TorchEngine(TorchEngine.Config(max_batch=64), *engine_inputs(model, tokenizer))
    repeats, num_graded = [], 0  # the first warms up
    for repeat in range(options.repeats + 1):
        seconds, num_graded = measure(engine, tokenizer, range(repeat * NUM_ANSWERS, (repeat + 1) * NUM_ANSWERS))
        repeats.append(seconds | {"one after the other": seconds["sampling"] + seconds["grading"]})
    result = {
        **describe_machine(pick_device("cpu")),
        "repeats": options.repeats,
        "graded": num_graded,
        "seconds": {name: median(seconds[name] for seconds in repeats[1:]) for name in repeats[0]},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(engine: TorchEngine, tokenizer: Any, seeds: Sequence[int]) -> tuple[dict[str, float], int]:
    """Seconds by what is done, and how many answers are graded: not those that the length cuts off."""
    states = [State(Problem(f"slow/{i}", "", ""), (7, 8 + i % 20)) for i in range(NUM_ANSWERS)]
    with start_grader() as (task, grader):
        environment = Environment(engine, task, grader, tokenizer, SamplingParams(), 10)
        start = time.perf_counter()
        completions = environment.finish(states, [MAX_TOKENS] * NUM_ANSWERS, seeds, purpose="eval")
        together = time.perf_counter() - start
    pairs = [
        (state.problem, graded.text)
        for state, graded in zip(states, completions, strict=True)
        if graded.completion.finish_reason != "length"
    ]
    with start_grader() as (_, grader):
        start = time.perf_counter()
        grader.grade(pairs)
        grading = time.perf_counter() - start
    requests = [Request(state.prefix_ids, MAX_TOKENS, seed) for state, seed in zip(states, seeds, strict=True)]
    start = time.perf_counter()
    engine.generate(requests, SamplingParams(), purpose="eval", keep=False)
    sampling = time.perf_counter() - start
    return {"sampling": sampling, "grading": grading, "together": together}, len(pairs)


@contextmanager
def start_grader() -> Iterator[tuple[Task, Grader]]:
    """With workers that have started."""
    task = import_module("grading").SlowTask(Arithmetic.Config())  # by the module's name, which the workers know too
    with Grader(task, GradingConfig()) as grader:
        grader.grade([(Problem(f"slow/{i}", "", ""), "starts both workers") for i in range(2)])
        yield task, grader


if __name__ == "__main__":
    main()
