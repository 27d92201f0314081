"""What the other process of tests/learner/test_objective.py runs; it finds this file by its name alone."""

from __future__ import annotations

from typing import Any

import torch
from tiny_learner import make_learner, make_model


def serve(connection: Any) -> None:
    """Does what it is told with a learner of its own, until it is told None."""
    torch.set_num_threads(1)
    learner = make_learner(reference=make_model(1), lr=0.01)
    while (call := connection.recv()) is not None:
        name, args = call
        connection.send(getattr(learner, name)(*args))
