"""Rollouts as they stand in a run's folder, made by hand. For the tests of the report."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

HOSTILE = "</script><script>document.title='x'</script> <img src=x onerror=\"document.title='y'\"> <b>bold</b>"


def rollout(problem: str, reward: float, values: list[float], *, vines: bool = True, say: str = "") -> dict[str, Any]:
    """A response of as many segments as `values` has, which are those of its states; V of its end is its reward."""
    ends = [*values, reward]
    vine = {"text": f"\nvine of {problem} {say}", "reward": 1.0}
    return {
        "problem": f"arithmetic/train/{problem}",
        "prompt": f"{problem} = ? {say}\n",
        "answer": "4",
        "reward": reward,
        "verdict": "correct" if reward else "wrong",
        "finish_reason": "eos",
        "segments": [f"\nstep {j} of {problem} {say}" for j in range(len(values))],
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
