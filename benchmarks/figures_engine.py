"""The table of docs/engine.md that compares engines, from benchmarks/results/generation-*.json."""

from __future__ import annotations

from typing import Any

from figures import RESULTS, load

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
    return "\n".join([*head, *rows[:3], hf_row(measured), *rows[3:]])


def hf_row(measured: list[dict[str, Any]]) -> str:
    """Beside the torch engine of the same run."""
    if (RESULTS / HF_ALONE).exists():
        return f"| hf engine, its own batches of 64, a run apart | {cells('hf engine', load(HF_ALONE)['benchmarks']['vines'])} | | |"
    rates = [rate(one["tokens_per_second"]["hf engine"]) for one in measured]
    return f"| hf engine, with 9 rows and not its own 64: not comparable | {rates[0]} | | {rates[1]} | |"


def cells(name: str, measured: dict[str, Any]) -> str:
    of = rate(measured["tokens_per_second"][name])
    if name == "torch engine":
        return f"{of} |"
    over = measured["torch_engine_over"][name]
    return f"{of} | {over:.2f}x" if name == "products only" else f"{of} | {over:.1f}x"


def rate(numbers: dict[str, float]) -> str:
    return f"{numbers['median']:.0f} [{numbers['min']:.0f}, {numbers['max']:.0f}]"
