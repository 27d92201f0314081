"""What tests/learner/test_objective.py sends to another process, which finds this file by its name alone."""

from __future__ import annotations

from typing import Any

import torch
from tiny_learner import make_learner, make_model

from vineppo.learner.objective import Loss, Max, Sum


def reward_weighted_nll(batch, readings, config, counts) -> Loss:
    losses_N = -batch.columns["advantages"] * readings.logprobs_N
    loss = losses_N.sum() / counts.num_tokens
    metrics = {"rwr/loss": Sum(loss), "rwr/loss_max": Max(losses_N.max())}
    return Loss(loss, metrics, limits={"rwr/loss_max": 1e6})


def serve(connection: Any) -> None:
    """Does what it is told with a learner of its own, until it is told None."""
    torch.set_num_threads(1)
    learner = make_learner(reference=make_model(1), lr=0.01)
    while (call := connection.recv()) is not None:
        name, args = call
        connection.send(getattr(learner, name)(*args))
