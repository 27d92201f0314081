"""The numbers of README.md, from benchmarks/results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from figures import ROOT, Document, load
from quickstart import transcript


def readme() -> Document:
    return Document(ROOT / "README.md", [*quickstart(), *speed()], SETTINGS)


def quickstart() -> Iterator[str]:
    """The transcript word for word, and every number in it that the run's metrics hold too."""
    shown = transcript()
    yield shown
    runs = {seed: load(f"quickstart/seed{seed}.json") for seed in (0, 1, 2)}
    for run in runs.values():
        assert not run["commit"].endswith("-dirty")
    for line in runs[0]["metrics"]["vineppo"]:
        told = f"reward {line['reward/mean']:.3f}  V {line['credit/value_mean']:.3f}"
        assert told in shown, told
    assert f"{runs[0]['vineppo']['pass@1']:.1%}" in shown
    after = {seed: f"{run['vineppo']['pass@1']:.1%}".replace("%", " %") for seed, run in runs.items()}
    before = {seed: f"{run['sft']['pass@1']:.1%}".replace("%", " %") for seed, run in runs.items()}
    yield (
        f"Shown is seed 0, {rank(runs)} of three; seeds 1 and 2 went from {before[1]} to {after[1]} and from {before[2]} to {after[2]} "
        f"(commit `{runs[0]['commit']}`"
    )
    memory = max(run["peak_memory_mb"] for run in runs.values()) * 2**20 / 1e9
    yield f"and {memory:.1f} GB on two CPU cores"


def rank(runs: Mapping[int, Any]) -> str:
    """Where the default seed stands, which was chosen before its result and may be lucky."""
    scores = sorted((run["vineppo"]["pass@1"] for run in runs.values()), reverse=True)
    return ("the best", "the middle one", "the worst")[scores.index(runs[0]["vineppo"]["pass@1"])]


def speed() -> Iterator[str]:
    spent, vines = load("iterations-cpu.json"), load("generation-cpu.json")["benchmarks"]["vines"]
    over = vines["torch_engine_over"]
    assert 0.95 < spent["vineppo_over_ppo"] < 1.05
    yield f"an iteration of VinePPO takes {spent['vineppo_over_grpo']:.1f} times one of GRPO and as long as one of PPO"
    yield (
        f"is {over['vllm']:.1f} times faster than vLLM on CPU and {over['generate']:.1f} times faster than `generate`, at "
        f"{over['products only']:.0%} of what the matrix".replace("%", " %")
    )
    yield f"on vines of a {vines['num_parameters'] / 1e6:.0f}M model"


SETTINGS = [
    "ICML 2025",
    "Python 3.10 or newer",
    "# SmolLM2-135M, 100 MB, no hub account",
    "Rho-Math-1B and DeepSeekMath-7B",
    "--seeds 0,1,2 --jobs 2",
    "add up to R - V(s_0)",
    "variance p(1-p)/K",
    "log-probs to 1e-4",
    "change no gradient (1e-10 in",
    "With learning rate 0, three iterations on: ratio 1, KL 0",
    "GRPO 7/8 of it",
    "equal to plain loops, 1e-6",
    "A perfect estimator scores 1, a random one chance, K vines err as p(1 - p)/K says",
    "Apache-2.0",
]
