"""Real (unpadded) tokens per second of the learner, with the share of the machine's matrix-product rate.

    python benchmarks/learner.py --model models/smollm2-135m --out benchmarks/results/learner-cpu.json

One optimizer step on 16 rollouts (prompts of 60 to 140 tokens, responses of 60 to 200, as on GSM8K) with a reference
model, and one scoring pass (policy and reference) over the same rollouts. Without --model only the quickstart's tiny
model is measured, on 64 rollouts of its own lengths. --default-malloc leaves the allocator as the C library has it.

Floating-point operations per token: 2 for each parameter that is multiplied, three times that with the backward pass.
Not counted, so that the share is of useful work: attention (about 3 % at these lengths) and the head's second forward
(log-probs are computed again in the backward pass, not kept).
"""

from __future__ import annotations

import argparse
import json
import random
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import seconds, summarize

from vineppo.learner.config import LearnerConfig, OptimConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.learner.policy_loss import policy_loss
from vineppo.machine import runtime
from vineppo.machine.limits import peak_memory_mb
from vineppo.models import TinyModelConfig
from vineppo.models.loading import load_model
from vineppo.models.make import make_symbol_tokenizer, make_tiny_model
from vineppo.sample import Sample
from vineppo.types import SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--microbatch-tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tuned = not options.default_malloc and runtime.tune_allocator()
    device = runtime.pick_device(options.device)
    tiny_tokenizer = make_symbol_tokenizer(map(chr, range(33, 94)))
    benchmarks = {}
    if options.model:
        models = [load_model(options.model, device=device) for _ in range(2)]
        benchmarks["model"] = bench(models, make_rollouts(16, (60, 140), (60, 200)), device, options)
    models = [make_tiny_model(tiny_tokenizer, TinyModelConfig(), seed).to(device) for seed in (0, 1)]  # type: ignore[arg-type]
    benchmarks["tiny"] = bench(models, make_rollouts(64, (18, 26), (51, 76)), device, options)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **runtime.describe_machine(device),
        "tuned_malloc": tuned,
        "options": {key: value.name if isinstance(value, Path) else value for key, value in vars(options).items()},
        "peak_memory_mb": round(peak_memory_mb()),
        "benchmarks": benchmarks,
    }
    for name, benchmark in benchmarks.items():
        print_table(name, benchmark)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def make_rollouts(n: int, prompt: tuple[int, int], response: tuple[int, int]) -> list[Sample]:
    rng = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(60) for _ in range(length))

    rollouts = []
    for _ in range(n):
        length = rng.randint(*response)
        advantages = tuple(rng.gauss(0, 1) for _ in range(length))
        rollouts.append(Sample(ids(rng.randint(*prompt)), ids(length), advantages, (0.0,) * length))
    return rollouts


def bench(
    models: list[Any], rollouts: list[Sample], device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """Products, step and scoring take turns, so that a busy machine slows all of them."""
    policy, reference = models
    config = LearnerConfig(
        microbatch_tokens=options.microbatch_tokens, precision=options.precision, optim=OptimConfig(lr=1e-9)
    )
    learner = PolicyLearner(config, policy, reference, sampling=SamplingParams(), total_steps=1000)
    scored = learner.score(rollouts)
    learner.step(scored, policy_loss)  # optimizer state and thread pools exist from here on
    num_tokens = sum(len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts)
    num_multiplied = sum(p.numel() for name, p in policy.named_parameters() if p.ndim == 2 and "embed" not in name)
    if policy.config.tie_word_embeddings:
        num_multiplied += policy.get_output_embeddings().weight.numel()
    rates: dict[str, list[float]] = {"products": [], "step": [], "score": []}
    for _ in range(options.repeats):
        rates["products"].append(product_rate(device, learner.optimizer_step.dtype))
        rates["step"].append(num_tokens / seconds(lambda: learner.step(scored, policy_loss), device))
        rates["score"].append(2 * num_tokens / seconds(lambda: learner.score(rollouts), device))
    operations = {"step": 6 * num_multiplied, "score": 2 * num_multiplied}
    return {
        "dtype": str(learner.optimizer_step.dtype),
        "num_parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "real_tokens": num_tokens,
        "gflops_of_products": summarize(rates["products"]),
        "tokens_per_second": {name: summarize(rates[name]) for name in operations},
        "share_of_products": {
            name: median(r * count / p / 1e9 for r, p in zip(rates[name], rates["products"], strict=True))
            for name, count in operations.items()
        },
        "tokens_per_second_at_full_rate": {
            name: median(rates["products"]) * 1e9 / count for name, count in operations.items()
        },
    }


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """GFLOP/s of square products of this size."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    repeats = 5 if device.type == "cpu" else 50
    return repeats * 2 * size**3 / seconds(lambda: [a @ b for _ in range(repeats)], device) / 1e9


def print_table(name: str, benchmark: dict[str, Any]) -> None:
    products = benchmark["gflops_of_products"]["median"]
    title = f"{name}: {benchmark['num_parameters'] / 1e6:.1f}M parameters, {benchmark['dtype']}, {products:.0f} GFLOP/s"
    table = Table(title=title)
    for column in ("what", "real tokens/s (median)", "min", "max", "n", "of the product rate"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, rate in benchmark["tokens_per_second"].items():
        numbers = [f"{rate[key]:,.0f}" for key in ("median", "min", "max", "n")]
        table.add_row(what, *numbers, f"{benchmark['share_of_products'][what]:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
