"""The numbers of README.md and docs/quickstart.md, from benchmarks/results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from figures import ROOT, Document, ci, load, short
from figures_results import TASKS, less, method, seconds, study, tokens
from quickstart import last_table, transcript

README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
CHAINS = {"short": "short, 3-4 steps", "middle": "middle, 6-8 steps", "long": "long, 10-12 steps"}
SEEDS = (0, 1, 2)


def readme() -> Document:
    return Document(README, [results_table(), *outcomes(), fenced(last_table()), *quickstart(), *speed()], SETTINGS)


def quickstart_page() -> Document:
    check_transcript()
    return Document(QUICKSTART, [fenced(transcript()), *quickstart()], ["Python 3.10 or newer"])


def fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


def results_table() -> str:
    """Accuracy, lead and cost of the study, a row for each task."""
    rows = [
        "| chains | start | VinePPO | lead over GRPO | over RLOO | over PPO | tokens | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        leads = " | ".join(ci(less(task, other)) for other in ("grpo", "rloo", "ppo"))
        costs = [f"{spent(task, 'vineppo') / spent(task, 'grpo'):.1f} x GRPO's" for spent in (tokens, seconds)]
        start, final = short(study(task)["initial_accuracy"]), ci(method(task, "vineppo")["final"])
        rows.append(f"| {CHAINS[task]} | {start} | {final} | {leads} | {' | '.join(costs)} |")
    return "\n".join(rows)


def outcomes() -> Iterator[str]:
    """The sentences below that table, word for word, and that the intervals say so."""
    above = {(t, m): less(t, m)["ci95"] for t in TASKS for m in ("grpo", "rloo", "ppo")}
    assert above["short", "grpo"][0] > 0
    yield "on short chains it beats GRPO"
    assert above["middle", "ppo"][0] > 0
    assert all(above["middle", m][0] < 0 < less("middle", m)["mean"] for m in ("grpo", "rloo"))
    yield "On middle ones it beats PPO and leads GRPO and RLOO by less than five seeds can tell from 0"
    assert above["long", "rloo"][1] < 0
    assert all(less("long", m)["mean"] < 0 < above["long", m][1] for m in ("grpo", "ppo"))
    yield "to RLOO beyond the interval, to GRPO and PPO by less than five seeds can tell from 0"


def runs() -> dict[int, Any]:
    return {seed: load(f"quickstart/seed{seed}.json") for seed in SEEDS}


def check_transcript() -> None:
    """Every number of the transcript that the run's metrics hold too is theirs."""
    shown, run = transcript(), runs()[0]
    assert not any(run["commit"].endswith("-dirty") for run in runs().values())
    for line in run["metrics"]["vineppo"]:
        text = f"reward {line['reward/mean']:.3f}  V {line['credit/value_mean']:.3f}"
        assert text in shown, text
    assert f"{run['vineppo']['pass@1']:.1%}" in last_table()


def quickstart() -> Iterator[str]:
    before, after = (
        {seed: f"{run[part]['pass@1']:.1%}".replace("%", " %") for seed, run in runs().items()}
        for part in ("sft", "vineppo")
    )
    yield (
        f"Shown is seed 0, {rank(runs())} of three; seeds 1 and 2 went from {before[1]} to {after[1]} and from {before[2]} to {after[2]}"
    )
    memory = max(run["peak_memory_mb"] for run in runs().values()) * 2**20 / 1e9
    yield f"and {memory:.1f} GB on two CPU cores"


def rank(found: Mapping[int, Any]) -> str:
    """Where the default seed stands, which was chosen before its result and may be lucky."""
    scores = sorted((run["vineppo"]["pass@1"] for run in found.values()), reverse=True)
    return ("the best", "the middle one", "the worst")[scores.index(found[0]["vineppo"]["pass@1"])]


def speed() -> Iterator[str]:
    spent, vines = load("iterations-cpu.json"), load("generation-cpu.json")["benchmarks"]["vines"]
    over = vines["torch_engine_over"]
    assert 0.95 < spent["vineppo_over_ppo"] < 1.05
    yield f"an iteration of VinePPO takes {spent['vineppo_over_grpo']:.1f} times one of GRPO and as long as one of PPO"
    yield (
        f"is {over['vllm']:.1f} times faster than vLLM on CPU and {over['generate']:.1f} times faster than `generate`, at "
        f"{over['products only']:.0%} of what the matrix".replace("%", " %")
    )
    yield f"On vines of a {vines['num_parameters'] / 1e6:.0f}M model"


SETTINGS = [
    "ICML 2025",
    "A 0.9M-parameter Llama",
    "Accuracy on 400 test problems",
    "means of five seeds, 95 % intervals",
    "Python 3.10 or newer",
    "seed=0",
    "num_vines=9",
    "credits[0]",
    "advantage:+.2f",
    "# SmolLM2-135M, 100 MB, no hub account",
    "Rho-Math-1B and DeepSeekMath-7B",
    "about K x steps / 2 more are sampled",
    "K = 9 by default",
    "--seeds 0,1,2 --jobs 2",
    "Apache-2.0",
]
