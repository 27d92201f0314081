"""A run's folder as the program leaves it, made by hand. For the tests of reports and comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

HOSTILE = "</script><script>document.title='x'</script> <img src=x onerror=\"document.title='y'\"> <b>bold</b>"


def rollout(problem: str, reward: float, values: list[float], *, vines: bool = True, extra: str = "") -> dict[str, Any]:
    """A response of as many segments as `values` has, which are those of its states; V of its end is its reward."""
    ends = [*values, reward]
    vine = {"text": f"\nvine of {problem} {extra}", "reward": 1.0}
    return {
        "problem": f"arithmetic/train/{problem}",
        "prompt": f"{problem} = ? {extra}\n",
        "answer": "4",
        "reward": reward,
        "verdict": "correct" if reward else "wrong",
        "finish_reason": "eos",
        "segments": [f"\nstep {j} of {problem} {extra}" for j in range(len(values))],
        "num_tokens": [5] * len(values),
        "advantages": [after - before for before, after in pairwise(ends)],
        "values": ends,
        "vines": [[vine, {**vine, "reward": 0.0}] for _ in values] if vines else None,
    }


def two_groups(iteration: int, **options: Any) -> list[dict[str, Any]]:
    first, second = f"{iteration}+1", f"{iteration}+2"
    return [
        rollout(first, 1.0, [0.5, 0.75], **options),
        rollout(first, 0.0, [0.5, 1.0, 0.25], **options),
        rollout(first, 0.0, [0.5], **options),
        rollout(second, 1.0, [1.0, 1.0], **options),
        rollout(second, 1.0, [1.0], **options),
    ]


def write_run(
    root: Path,
    method: str,
    seed: int,
    accuracies: Sequence[float | None],
    *,
    vines: int = 0,
    model: str = "some/model",
    section: str = "train",
    more: str = "",
    commit: str = "abc",
) -> Path:
    """Finished. Every iteration: 4 steps, 8 rollouts, 100 tokens, 2 s of work and, where given, an evaluation."""
    folder = root / f"run-{len(list(root.iterdir()))}"
    folder.mkdir()
    (folder / "recipe.toml").write_text(
        f'name = "{method}"\nseed = {seed}\n[model]\nname = "{model}"\n[credit]\nname = "{method}"\n'
        f"[{section}]\nnum = 1\n{more}"
    )
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "num_threads": 1, "commit": commit}))
    metrics, timings = [], []
    for i, accuracy in enumerate(accuracies, 1):
        line = {"iteration": i, "optim/num_steps": 4, "rollouts/num": 8, "tokens/policy": 100, "tokens/vine": vines}
        metrics.append(line | {"memory/policy_parameters_mb": 3.5})
        timings.append({"iteration": i, "seconds/sample": 0.5, "seconds/update": 1.5, "memory/peak_mb": 100.0 + i})
        if accuracy is not None:
            metrics[-1] |= {"tokens/eval": 999, "eval/pass@1": accuracy, "eval/kl_reference": 0.1 * i}
            metrics[-1] |= {"reward/mean": accuracy / 2}
            timings[-1] |= {"seconds/evaluate": 50.0, "seconds/checkpoint": 9.0}
    for name, lines in (("metrics", metrics), ("timings", timings)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"pass@1": next((a for a in reversed(accuracies) if a is not None), 0.0), "iteration": len(accuracies)}
    (folder / "result.json").write_text(json.dumps(result | {"finished": True}))
    return folder
