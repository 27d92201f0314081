"""Seconds of one piece of work, and what many of them come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Until the device has done it."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def summarize(numbers: Sequence[float]) -> dict[str, float]:
    return {"n": len(numbers), "min": min(numbers), "median": median(numbers), "max": max(numbers)}
