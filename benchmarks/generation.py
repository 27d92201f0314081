"""Tokens per second of the engines, of transformers' `generate` and of vLLM, with the share of the matrix-product rate.

    python benchmarks/generation.py --workload workload.json --model models/smollm2-135m --out generation.json

In an environment with vLLM (`make test-vllm` makes .venv-vllm) vLLM is measured too: its own sampler, prefix caching,
all cores, the same allocator settings and precision.

    python benchmarks/generation.py --llama 135m 1.1b --device cuda --num-trajectories 32 --max-batch 512 --out gpu.json

needs no files: Llamas of these sizes with random weights, and random tokens for prompts and responses. On GPUs
`generate_batch`, transformers' continuous batching, is measured too. `roofline` is the time of the products plus that
of reading keys and values once a step, those of a state for all its vines together, at the rate of a plain copy.

The vine workload: trajectories of {"prompt": ids, "resp": ids}; from each state after 0, 30, ..., 180 response tokens,
K = 9 continuations at temperature 0.6 up to 200 response tokens, eos ignored. Prefix prefill is part of every time.
The hf engine gets the same requests in batches of its own default size, as training would give them. `generate`, one
call for each state, gets only the state after 90 tokens of the first trajectory: its prefix and length are the mean of
all seven, and more calls would share nothing. `--only "hf engine" "torch engine"` measures these two alone.
The tiny model has the quickstart's size: 512 rows with a prompt of 32 tokens and 64 new ones.
Without --model and --llama only the tiny model is measured. The torch engine is measured twice, with kernels in C++
and in PyTorch; `merged` is the share of its tokens that took no forward of their own, as another continuation had drawn
the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, LlamaConfig

from vineppo.engine.hf import HFEngine
from vineppo.engine.llama.engine import TorchEngine
from vineppo.engine.llama.model import multiply
from vineppo.machine.limits import peak_memory_mb
from vineppo.machine.runtime import describe_machine, pick_device, pick_dtype, tune_allocator
from vineppo.types import Request, SamplingParams

VLLM_ENVIRONMENT = {  # by default it leaves one core to its scheduler, and glibc gives memory back after every step
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
NUM_VINES, RESPONSE_TOKENS, EVERY = 9, 200, 30
SUBSET = (90,)
TINY: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 512,
}  # fmt: skip
TINY_BATCH, TINY_PROMPT, TINY_NEW = 512, 32, 64
LLAMAS: dict[str, dict[str, Any]] = {  # SmolLM2-135M's and TinyLlama-1.1B's
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "1.1b": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
}  # fmt: skip
PROMPT_TOKENS = 100


class System(NamedTuple):
    name: str
    run: Callable[[Sequence[Request]], int]  # returns the number of generated tokens
    requests: Sequence[Request]
    warm_up: Sequence[Request] = ()  # before anything is timed: thread pools and caches are warm in all of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--llama", nargs="+", choices=LLAMAS, default=[], help="random weights of these sizes")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--num-trajectories", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="names of systems; 'torch engine' must be among them")
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.workload is None) != (options.model is None):
        parser.error("--workload and --model go together")
    if options.only and "torch engine" not in options.only:
        parser.error("--only: the torch engine is what the others are compared with")
    tune_allocator()
    os.environ |= VLLM_ENVIRONMENT
    device = pick_device(options.device)
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **describe_machine(device),
        "options": {key: value.name if isinstance(value, Path) else value for key, value in vars(options).items()},
        "benchmarks": {},
    }
    if options.workload:
        result["benchmarks"]["vines"] = bench_vines(options, device)
    for size in options.llama:
        result["benchmarks"][f"vines {size}"] = bench_llama(size, options, device)
    if not (options.only and result["benchmarks"]):
        result["benchmarks"]["tiny"] = bench_tiny(options, device)
    result["peak_memory_mb"] = round(peak_memory_mb())
    if device.type == "cuda":
        result["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    for name, benchmark in result["benchmarks"].items():
        print_table(name, benchmark)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def bench_vines(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    trajectories = json.loads(options.workload.read_text())[: options.num_trajectories]
    params = SamplingParams(temperature=0.6, top_p=options.top_p)
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = model.to(device).eval()
    everything = make_vines(trajectories, range(0, RESPONSE_TOKENS, EVERY))
    subset = make_vines(trajectories[:1], SUBSET)
    vllm = start_vllm(options) if find_spec("vllm") else None
    return bench(model, params, everything, subset, options, vllm)


def bench_llama(size: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMAS[size])).to(device).eval()
    tokens = torch.randint(100, 10_000, (options.num_trajectories, PROMPT_TOKENS + RESPONSE_TOKENS)).tolist()
    trajectories = [{"prompt": ids[:PROMPT_TOKENS], "resp": ids[PROMPT_TOKENS:]} for ids in tokens]
    params = SamplingParams(temperature=0.6, top_p=options.top_p)
    everything = make_vines(trajectories, range(0, RESPONSE_TOKENS, EVERY))
    return bench(model, params, everything, make_vines(trajectories[:1], SUBSET), options)


def make_vines(trajectories: Sequence[dict[str, list[int]]], states: Sequence[int]) -> list[Request]:
    return [
        Request((*trajectory["prompt"], *trajectory["resp"][:state]), RESPONSE_TOKENS - state, hash((i, state, k)))
        for i, trajectory in enumerate(trajectories)
        for state in states
        for k in range(NUM_VINES)
    ]


def bench_tiny(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY)).to(device).eval()
    prompts = torch.randint(TINY["vocab_size"], (TINY_BATCH, TINY_PROMPT)).tolist()
    requests = [Request(tuple(prompt), TINY_NEW, seed) for seed, prompt in enumerate(prompts)]
    options = argparse.Namespace(**{**vars(options), "max_batch": TINY_BATCH})
    return bench(model, SamplingParams(temperature=1.0, top_p=options.top_p), requests, requests, options)


def bench(
    model: Any,
    params: SamplingParams,
    requests: Sequence[Request],
    slow_requests: Sequence[Request],
    options: argparse.Namespace,
    vllm: Any = None,
) -> dict[str, Any]:
    """All systems, on one model: what each generates a second, and what is known of the torch engine's work."""
    model.generation_config = GenerationConfig()
    dtype = pick_dtype("auto", model.device)
    torch_engine = make_engine(TorchEngine, model, max_batch=options.max_batch)
    portable = make_engine(TorchEngine, model, max_batch=options.max_batch, kernels="torch")
    hf_engine = make_engine(HFEngine, model)
    naive = model.to(dtype)
    batching = start_generate_batch(naive, params, options) if model.device.type == "cuda" else None
    systems = [
        System("generate", partial(run_naive, naive, params), slow_requests, shorten(slow_requests[:9])),
        System("hf engine", partial(run_engine, hf_engine, params), requests),
        System("torch engine", partial(run_engine, torch_engine, params), requests, requests[:9]),
        System("torch engine, kernels in PyTorch", partial(run_engine, portable, params), requests, requests[:9]),
        System("products only", lambda _: run_products(torch_engine, options.max_batch), requests),
    ]
    if batching is not None:
        systems.append(System("generate_batch", partial(run_generate_batch, batching), requests, shorten(requests[:9])))
    if vllm is not None:
        systems.append(System("vllm", partial(run_vllm, vllm, params), requests, shorten(requests[:9])))
    rates = measure([s for s in systems if not options.only or s.name in options.only], options.repeats)
    if batching is not None:
        batching.stop(block=True)
    return summarize(rates) | {
        **(roofline(torch_engine, requests, median(rates["products only"])) if "products only" in rates else {}),
        "merged": 1 - torch_engine.decoded_tokens / torch_engine.usage["vine"],
        "dtype": str(dtype),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": sum(request.max_new_tokens for request in requests),
        "tokens_of_generate": sum(request.max_new_tokens for request in slow_requests),
        "max_kv_tokens": torch_engine.memory.max_tokens,
        "seat_bytes": torch_engine.memory.held_bytes,
    }


def make_engine(kind: Any, model: Any, **knobs: Any) -> Any:
    """With nothing that ends a text but its length."""
    return kind(kind.Config(**knobs), model.config, model.state_dict(), tokenizer=None, eos_ids=frozenset())


def measure(systems: Sequence[System], repeats: int) -> dict[str, list[float]]:
    """Tokens per second, one system after the other, again and again: a busy machine slows all of them."""
    for system in systems:
        if system.warm_up:
            system.run(system.warm_up)
    rates: dict[str, list[float]] = {system.name: [] for system in systems}
    for _ in range(repeats):
        for system in systems:
            start = time.perf_counter()
            num_tokens = system.run(system.requests)
            rates[system.name].append(num_tokens / (time.perf_counter() - start))
    return rates


def shorten(requests: Sequence[Request]) -> list[Request]:
    return [Request(request.prefix_ids, 2, request.seed) for request in requests]


def summarize(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios are medians of the ratios inside each repeat."""
    ours = rates["torch engine"]
    return {
        "tokens_per_second": {
            name: {"n": len(numbers), "min": min(numbers), "median": median(numbers), "max": max(numbers)}
            for name, numbers in rates.items()
        },
        "torch_engine_over": {
            name: median(a / b for a, b in zip(ours, numbers, strict=True))
            for name, numbers in rates.items()
            if name != "torch engine"
        },
    }


def run_engine(engine: TorchEngine | HFEngine, params: SamplingParams, requests: Sequence[Request]) -> int:
    completions = engine.generate(requests, params, purpose="vine", keep=False)
    synchronize(engine.model.device)
    return sum(len(completion.token_ids) for completion in completions)


def start_vllm(options: argparse.Namespace) -> Any:
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    return LLM(
        str(options.model),
        dtype=str(pick_dtype("auto", pick_device(options.device))).removeprefix("torch."),
        max_model_len=512,
        max_num_seqs=options.max_batch,
        max_num_batched_tokens=4096,
        enable_prefix_caching=True,
        enforce_eager=options.device == "cpu",
        skip_tokenizer_init=True,
    )


def run_vllm(vllm: Any, params: SamplingParams, requests: Sequence[Request]) -> int:
    from vllm import SamplingParams as VLLMParams  # pyright: ignore[reportMissingImports]

    states = grouped(requests, lambda request: request.prefix_ids)
    asked = [
        VLLMParams(
            n=len(siblings), temperature=params.temperature, top_p=params.top_p, max_tokens=siblings[0].max_new_tokens,
            ignore_eos=True, detokenize=False,
        )
        for siblings in states
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": list(siblings[0].prefix_ids)} for siblings in states]
    answers = vllm.generate(prompts, asked, use_tqdm=False)
    vllm.reset_prefix_cache()  # what one repeat has computed is not there in the next
    return sum(len(output.token_ids) for answer in answers for output in answer.outputs)


def start_generate_batch(model: Any, params: SamplingParams, options: argparse.Namespace) -> Any:
    """Continuous batching with shared prefix blocks; warmed up, and kept for all repeats as a server would be."""
    config = GenerationConfig(
        do_sample=True, temperature=params.temperature, top_p=params.top_p, top_k=0, max_new_tokens=RESPONSE_TOKENS,
        eos_token_id=-1, pad_token_id=0,
    )  # fmt: skip
    batching = ContinuousBatchingConfig(max_requests_per_batch=options.max_batch)
    manager = copy.deepcopy(model).init_continuous_batching(config, continuous_batching_config=batching)
    manager.warmup()
    manager.start()
    return manager


def run_generate_batch(manager: Any, requests: Sequence[Request]) -> int:
    for request in sorted(requests, key=lambda request: request.prefix_ids):  # as it sorts them to share prefixes
        manager.add_request(list(request.prefix_ids), max_new_tokens=request.max_new_tokens, eos_token_id=-1)
    num_tokens = finished = 0
    while finished < len(requests):
        answer = manager.get_result(timeout=1)
        if answer is not None and answer.is_finished():
            num_tokens, finished = num_tokens + len(answer.generated_tokens), finished + 1
        elif answer is None and not manager.is_running():
            raise RuntimeError("generate_batch has stopped; its own message is above")
    return num_tokens


def grouped(requests: Sequence[Request], key: Callable[[Request], Any]) -> list[list[Request]]:
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        groups.setdefault(key(request), []).append(request)
    return list(groups.values())


@torch.inference_mode()
def run_naive(model: Any, params: SamplingParams, requests: Sequence[Request]) -> int:
    # Siblings of a state, or prompts of one length: `generate` needs no padding.
    for batch in grouped(requests, lambda request: (len(request.prefix_ids), request.max_new_tokens)):
        ids = torch.tensor([request.prefix_ids for request in batch], device=model.device)
        config = GenerationConfig(
            do_sample=True,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=0,
            max_new_tokens=batch[0].max_new_tokens,
            pad_token_id=0,
        )
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    synchronize(model.device)
    return sum(request.max_new_tokens for request in requests)


@torch.inference_mode()
def run_products(engine: TorchEngine, batch: int, seconds: float = 5.0) -> int:
    """Only the matrix products that a token needs: the rate no engine with these products can pass."""
    model = engine.model
    matrices = [w for name, w in model.weights.items() if w.ndim == 2 and name != "embed"]
    widths = {w.shape[1] for w in matrices}
    inputs = {width: torch.randn(batch, width).to(model.device, model.dtype) for width in widths}
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for matrix in matrices:
            multiply(inputs[matrix.shape[1]], matrix)
        synchronize(model.device)
        tokens += batch
    return tokens


def roofline(engine: TorchEngine, requests: Sequence[Request], products_per_second: float) -> dict[str, float]:
    """Tokens per second if nothing took time but the products and reading keys and values."""
    own = sum(request.max_new_tokens * (request.max_new_tokens - 1) // 2 for request in requests)
    shared = sum(len(prefix) * new for prefix, new in {(r.prefix_ids, r.max_new_tokens) for r in requests})
    read = (own + shared) * engine.memory.numbers_per_token * engine.model.dtype.itemsize
    num_tokens, bandwidth = sum(request.max_new_tokens for request in requests), copy_bandwidth(engine.model.device)
    seconds = num_tokens / products_per_second + read / bandwidth
    return {"roofline_tokens_per_second": num_tokens / seconds, "copy_gb_per_second": bandwidth / 1e9}


def copy_bandwidth(device: torch.device, num_bytes: int = 1 << 29, repeats: int = 5) -> float:
    """Bytes read and written per second, the best of some copies."""
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = max(best, 2 * num_bytes / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_table(name: str, benchmark: dict[str, Any]) -> None:
    table = Table(title=f"{name}: {benchmark['num_parameters'] / 1e6:.1f}M parameters, {benchmark['dtype']}")
    for column in ("system", "tokens/s (median)", "min", "max", "n", "torch engine is"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for system, rate in benchmark["tokens_per_second"].items():
        ratio = benchmark["torch_engine_over"].get(system)
        numbers = [f"{rate[key]:,.0f}" for key in ("median", "min", "max", "n")]
        table.add_row(system, *numbers, "" if ratio is None else f"{ratio:.2f}x")
    Console().print(table)
    roofline = benchmark.get("roofline_tokens_per_second")  # measured with all systems alone
    if roofline is not None:
        share = benchmark["tokens_per_second"]["torch engine"]["median"] / roofline
        print(f"{share:.0%} of the roofline, {roofline:,.0f} tokens/s")


if __name__ == "__main__":
    main()
