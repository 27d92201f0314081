"""A step is taken whole or not at all, and what is added up over microbatches is what the whole has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_learner import make_learner, make_samples, snapshot

from vineppo.learner.policy_loss import policy_loss
from vineppo.types import UserError


@pytest.mark.parametrize("what", ["advantage", "ratio", "weights"])
def test_a_bad_minibatch_changes_nothing_and_is_counted(what):
    learner = make_learner()
    samples = learner.score(make_samples())
    learner.step(samples, policy_loss)
    before = snapshot(learner)
    bad = list(samples)
    if what == "advantage":
        bad[3] = replace(bad[3], advantages=(math.nan,) * len(bad[3].response_ids))
    elif what == "ratio":
        bad = [replace(s, old_logprobs=tuple(x - 5 for x in s.old_logprobs or ())) for s in bad]
    else:
        # The loss is finite, but the root's derivative at 0 is not.
        learner.model.base_model.register_forward_hook(add_zero_root)
    assert learner.step(bad, policy_loss)["optim/num_skipped_steps"] == 1
    for one, other in zip(before, snapshot(learner), strict=True):
        assert torch.equal(one, other)
    assert learner.optimizer_step.num_steps == 1


def add_zero_root(module: Any, args: Any, output: Any) -> Any:
    return type(output)(last_hidden_state=output.last_hidden_state + torch.sqrt(next(module.parameters()).sum() * 0))


def test_too_many_bad_minibatches_in_a_row_stop_the_run():
    learner = make_learner(max_skipped_steps=3)
    good = learner.score(make_samples())
    bad = [replace(s, advantages=(math.inf,) * len(s.response_ids)) for s in good]
    for minibatch in (bad, bad, good, bad, bad):
        learner.step(minibatch, policy_loss)
    with pytest.raises(UserError, match=r"3 optimizer steps in a row were skipped.*not finite"):
        learner.step(bad, policy_loss)
