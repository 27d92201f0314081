"""The table of docs/engine.md that compares engines, from benchmarks/results/generation-*.json."""

from __future__ import annotations

import textwrap
from typing import Any

from figures import load

FILES = ("generation-cpu.json", "generation-cpu-top_p-0.9.json")
HF_ALONE = "generation-hf-cpu.json"
"""Made with --only "hf engine" "torch engine" since the hf engine gets its own batch."""
NAMES = {
    "torch engine": "torch engine",
    "torch engine, kernels in PyTorch": "torch engine, kernels in PyTorch",
    "vllm": "vLLM 0.32 on both cores, prefix caching",
    "generate": "transformers' `generate`, one call for each state",
    "products only": "products only",
}


def vines() -> str:
    measured = [load(name)["benchmarks"]["vines"] for name in FILES]
    rows = [f"| {called} | {' | '.join(cells(name, one) for one in measured)} |" for name, called in NAMES.items()]
    head = ["| tokens per second | top_p = 1 | | top_p = 0.9 | |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", hf_engine()])


def hf_engine() -> str:
    """A run apart, on another machine, beside the torch engine of the same run."""
    run = load(HF_ALONE)
    vines = run["benchmarks"]["vines"]
    ours, theirs = (vines["tokens_per_second"][name]["median"] for name in ("torch engine", "hf engine"))
    text = (
        f"The hf engine, with all continuations and its own batches of 64, on another machine ({run['device'].removeprefix('cpu: ')}, Zen 5, "
        f"{vines['dtype']}, commit `{run['commit']}`, top_p = 1, one run): {theirs:,.0f} tokens a second, the torch engine beside it "
        f"{ours:,.0f}, {ours / theirs:.1f} times as many."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def cells(name: str, measured: dict[str, Any]) -> str:
    of = rate(measured["tokens_per_second"][name])
    if name == "torch engine":
        return f"{of} |"
    over = measured["torch_engine_over"][name]
    return f"{of} | {over:.2f}x" if name == "products only" else f"{of} | {over:.1f}x"


def rate(numbers: dict[str, float]) -> str:
    return f"{numbers['median']:.0f} [{numbers['min']:.0f}, {numbers['max']:.0f}]"
