"""Memory and seconds of a critic of tokens: a head on the policy's own features, and a backbone of its own.

    python benchmarks/critic.py --model models/smollm2-135m --out benchmarks/results/critic-cpu.json

What credit by a critic adds to an iteration: guesses for all responses (`judge`) and one pass of learning (`learn`),
beside what the policy's learner does in one with RLOO (`policy`: scoring with no reference, and two epochs of steps).
Without --model the quickstart's tiny model is measured, on 128 responses of its lengths; a model on 16 of GSM8K's.
They take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import seconds as seconds_of
from timing import summarize

from vineppo.learner.action_critic import HeadCritic
from vineppo.learner.config import ActionCriticConfig, LearnerConfig, OptimConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.learner.policy_loss import policy_loss
from vineppo.machine import runtime
from vineppo.methods.epochs import split
from vineppo.models import TinyModelConfig
from vineppo.models.loading import load_model
from vineppo.models.make import make_symbol_tokenizer, make_tiny_model
from vineppo.sample import Sample
from vineppo.types import Completion, Problem, Rollout, SamplingParams

BACKBONES = ("policy", "own")
NUM_ALTERNATIVES, FORK_FRAC = 8, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runtime.tune_allocator()
    device = runtime.pick_device(options.device)
    if options.model:
        model, rollouts = load_model(options.model, device=device), make_rollouts(16, (60, 140), (60, 200))
    else:
        tokenizer = make_symbol_tokenizer(map(chr, range(33, 94)))
        model: Any = make_tiny_model(tokenizer, TinyModelConfig(), 0)
        model, rollouts = model.to(device), make_rollouts(128, (18, 26), (51, 76))
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **runtime.describe_machine(device),
        "model": Path(options.model).name if options.model else "tiny",
        "num_responses": len(rollouts),
        "num_tokens": sum(len(rollout.token_ids) for rollout in rollouts),
        **bench(model, rollouts, device, options.repeats),
    }
    print_tables(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def make_rollouts(n: int, prompt: tuple[int, int], response: tuple[int, int]) -> list[Rollout]:
    """Of tokens by chance, one in twenty of them at a fork, as in the quickstart: elsewhere there is one to judge."""
    rng = random.Random(0)
    fork = [math.log(0.5 ** (k + 1)) for k in range(NUM_ALTERNATIVES)]
    certain = [math.log(0.999), *[math.log(1e-4)] * (NUM_ALTERNATIVES - 1)]

    def rollout() -> Rollout:
        prompt_ids = tuple(rng.randrange(60) for _ in range(rng.randint(*prompt)))
        drawn = [rng.sample(range(60), NUM_ALTERNATIVES) for _ in range(rng.randint(*response))]
        logprobs = [fork if rng.random() < FORK_FRAC else certain for _ in drawn]
        alternatives = tuple(tuple(zip(*pair, strict=True)) for pair in zip(drawn, logprobs, strict=True))
        tokens = tuple(ids[0] for ids in drawn)
        completion = Completion(tokens, tuple(row[0] for row in logprobs), "eos", 0, alternatives)
        reward = float(rng.random() < 0.5)
        return Rollout(Problem("p", "", ""), prompt_ids, completion, "", reward, "correct", (0, len(tokens)), 512)

    return [rollout() for _ in range(n)]


def bench(model: Any, rollouts: list[Rollout], device: torch.device, repeats: int) -> dict[str, Any]:
    critics = {
        backbone: HeadCritic(
            ActionCriticConfig(backbone=backbone), model if backbone == "policy" else copy.deepcopy(model), seed=0
        )
        for backbone in BACKBONES
    }
    learner = PolicyLearner(
        LearnerConfig(optim=OptimConfig(lr=1e-9)), model, None, sampling=SamplingParams(), total_steps=1000
    )
    work: dict[str, Callable[[], object]] = {"policy": lambda: iterate(learner, rollouts)}
    for backbone, critic in critics.items():
        work[f"{backbone}: judge"] = lambda critic=critic: critic.action_values(rollouts)
        work[f"{backbone}: learn"] = lambda critic=critic: critic.learn(rollouts, seed=0)
    for one in work.values():
        one()  # optimizer state and thread pools exist from here on
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, one in work.items():
            seconds[name].append(seconds_of(one, device))
    memory = {"policy": sum(learner.memory().values())}
    memory |= {backbone: sum(critic.memory().values()) for backbone, critic in critics.items()}
    return {"seconds": {name: summarize(numbers) for name, numbers in seconds.items()}, "memory_mb": memory}


def iterate(learner: PolicyLearner, rollouts: list[Rollout]) -> None:
    samples = [
        Sample(r.prompt_ids, r.token_ids, (r.reward - 0.5,) * len(r.token_ids), r.completion.logprobs) for r in rollouts
    ]
    scored = learner.score(samples)
    for epoch in range(2):
        for minibatch in split(scored, 64, seed=epoch):
            learner.step(minibatch, policy_loss)


def print_tables(result: dict[str, Any]) -> None:
    title = f"{result['model']}: {result['num_responses']} responses, {result['num_tokens']:,} tokens"
    table = Table("what", "seconds (median)", "min", "max", "of the policy's", title=title)
    policy = result["seconds"]["policy"]["median"]
    for name, of_one in result["seconds"].items():
        numbers = [f"{of_one[key]:.2f}" for key in ("median", "min", "max")]
        table.add_row(name, *numbers, f"{of_one['median'] / policy:.0%}")
    memory = Table("whose", "MiB: parameters, gradients, optimizer")
    for name, size in result["memory_mb"].items():
        memory.add_row(name, f"{size:.1f}")
    console = Console()
    console.print(table)
    console.print(memory)


if __name__ == "__main__":
    main()
