"""One iteration on GSM8K with SmolLM2: GRPO and VinePPO (K = 9) here, and the same GRPO iteration in TRL.

    python benchmarks/against_trl.py --model FOLDER --data FOLDER --out runs/against_trl --json result.json

FOLDER of --model: SmolLM2 after recipes/gsm8k-smollm2/sft.toml; of --data: train.jsonl and test.jsonl. Both sides: 8
prompts x 4 responses of at most 128 tokens at temperature 0.6 and top_p 0.9, then 4 optimizer steps of 16 responses, a
KL penalty against the initial policy, float32, the same allocator settings. Everyone runs two iterations in a process
of its own, and the second counts. TRL is measured if it is installed; it samples with transformers' `generate`.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from vineppo.compare.jobs import Job, is_finished, run_jobs
from vineppo.machine import runtime
from vineppo.machine.files import read_lines
from vineppo.machine.limits import peak_memory_mb
from vineppo.methods import load_recipe
from vineppo.runs.metrics import METRICS, TIMINGS
from vineppo.tasks import TASKS

RECIPES = Path(__file__).parent.parent / "recipes" / "gsm8k-smollm2"
PROMPTS, GROUP, TOKENS, STEPS = 8, 4, 128, 4
LENGTH = "completions/mean_length"
QUICK = ["train.num_iterations=2", "evaluation.num_problems=2", "evaluation.max_new_tokens=8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/against_trl"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, float]]] = {"grpo": [], "vineppo": [], "TRL grpo": []}
    for repeat in range(args.repeats):
        for method in ("grpo", "vineppo"):
            found[method].append(measure_ours(method, args, repeat))
        if find_spec("trl"):
            with get_context("spawn").Pool(1) as pool:
                found["TRL grpo"].append(pool.apply(measure_trl, (args.model, args.data, args.out / f"trl-{repeat}")))
    result = {**runtime.describe_machine(torch.device("cpu")), "runs": found}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure_ours(method: str, args: argparse.Namespace, seed: int) -> dict[str, float]:
    overrides = [f"model.name={args.model}", f"task.path={args.data}", f"seed={seed}", *QUICK]
    job = Job(load_recipe(RECIPES / f"{method}.toml", overrides), args.out / f"{method}-{seed}")
    if not is_finished(job):
        assert not run_jobs([job], 1, print)
    timings, metrics = read_lines(job.folder / TIMINGS)[1], read_lines(job.folder / METRICS)[1]
    phases = ("sample", "credit", "score", "update")
    seconds = {phase: timings.get(f"seconds/{phase}", 0.0) for phase in phases}
    return {
        **seconds,
        "total": sum(seconds.values()),
        "policy_tokens": metrics["tokens/policy"],
        "vine_tokens": metrics.get("tokens/vine", 0),
        "peak_mb": timings["memory/peak_mb"],
    }


def measure_trl(model_folder: Path, data: Path, out: Path) -> dict[str, float]:
    runtime.prepare()
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]

    recipe: Any = load_recipe(RECIPES / "grpo.toml", [f"task.path={data}"])
    task = TASKS[recipe.task.name](recipe.task)
    problems = task.sample(2 * PROMPTS, seed=0)

    def reward(completions: list[str], number: list[int], **_: Any) -> list[float]:
        return [task.grade(problems[i], text).reward for i, text in zip(number, completions, strict=True)]

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": [p.prompt for p in problems], "number": [*range(len(problems))]}),
        callbacks=[clock],
        args=trl_config(recipe, out),
    )
    trainer.train()
    lengths = [line[LENGTH] for line in trainer.state.log_history if LENGTH in line]
    return {
        "total": clock.ends[2 * STEPS - 1] - clock.ends[STEPS - 1],
        "policy_tokens": lengths[-1] * PROMPTS * GROUP,  # logged once an iteration
        "peak_mb": peak_memory_mb(),
    }


def trl_config(recipe: Any, out: Path) -> Any:
    """The recipe's GRPO in TRL's words."""
    from trl import GRPOConfig  # pyright: ignore[reportMissingImports]

    return GRPOConfig(
        output_dir=str(out),
        num_generations=GROUP,
        max_completion_length=TOKENS,
        temperature=recipe.sampling.temperature,
        top_p=recipe.sampling.top_p,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        steps_per_generation=PROMPTS * GROUP // 8,
        num_iterations=2,
        max_steps=2 * STEPS,
        beta=recipe.learner.kl_coef,
        learning_rate=recipe.learner.optim.lr,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
    )


if __name__ == "__main__":
    main()
