"""A token that the environment wrote is read as context, and otherwise as if it were not there."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_learner import (
    AGGREGATIONS,
    column,
    expect_equal,
    gradients,
    log_softmax,
    make_learner,
    make_model,
    make_samples,
    make_scored,
    of_targets,
    snapshot,
)

from vineppo.batch import COLUMNS, collate
from vineppo.learner.advantages import normalize_advantages
from vineppo.learner.policy_loss import policy_loss
from vineppo.methods.sft import nll_loss
from vineppo.sample import Sample


def make_masked() -> list[Sample]:
    """About a third of the tokens are the environment's."""
    rng = random.Random(7)
    return [
        replace(sample, action_mask=(*(rng.random() < 0.7 for _ in sample.response_ids[1:]), True))
        for sample in make_samples()
    ]


def disturb(sample: Sample) -> Sample:
    """With nonsense in every column where the environment wrote."""
    mask = sample.action_mask or ()
    columns = {name: getattr(sample, name) for name in COLUMNS if getattr(sample, name) is not None}
    return replace(
        sample,
        **{
            name: tuple(x if is_action else math.inf for x, is_action in zip(numbers, mask, strict=True))
            for name, numbers in columns.items()
        },
    )


@pytest.mark.parametrize("options", [*AGGREGATIONS, {"entropy_coef": 0.3, "max_importance": 1.1}], ids=str)
@pytest.mark.parametrize("loss", [policy_loss, nll_loss])
def test_what_columns_have_at_a_masked_token_changes_no_bit(loss, options):
    samples = make_scored(make_learner(reference=make_model(1)), make_masked())
    learners = [make_learner(reference=make_model(1), **options) for _ in range(2)]
    metrics = [learners[0].step(samples, loss), learners[1].step(list(map(disturb, samples)), loss)]
    assert metrics[0] == metrics[1]
    assert all(map(torch.equal, snapshot(learners[0]), snapshot(learners[1])))


@pytest.mark.parametrize("options", AGGREGATIONS, ids=str)
def test_loss_and_gradient_are_those_of_a_loop_over_the_actions(options):
    """At the policy that sampled, where every ratio is 1 and its gradient that of the log-prob."""
    model = make_model()
    samples = make_learner(model).score(make_masked())
    num_actions = sum(sample.num_actions for sample in samples)
    assert num_actions < sum(len(sample.response_ids) for sample in samples)
    weights = {None: lambda s: 1 / num_actions, "sequence": lambda s: 1 / len(samples) / s.num_actions}
    weight = weights.get(options.get("loss_aggregation"), lambda s: 1 / len(samples) / 9)
    loss: Any = 0.0
    for sample in samples:
        new = of_targets(log_softmax(model, sample), sample)
        for t, is_action in enumerate(sample.action_mask or ()):
            if is_action:
                loss = loss - weight(sample) * sample.advantages[t] * (new[t] - new[t].detach()).exp()
    learner = make_learner(**options)
    expect_equal(gradients(learner, samples), torch.autograd.grad(loss, list(model.parameters())))
    assert learner.step(samples, policy_loss)["policy/loss"] == pytest.approx(loss.item(), abs=1e-12)


def test_a_mask_of_true_is_none_bit_for_bit():
    samples = make_scored(make_learner(reference=make_model(1)))
    masked = [replace(sample, action_mask=(True,) * len(sample.response_ids)) for sample in samples]
    learners = [make_learner(reference=make_model(1), entropy_coef=0.1, max_importance=1.1) for _ in range(2)]
    assert learners[0].step(samples, policy_loss) == learners[1].step(masked, policy_loss)
    assert all(map(torch.equal, snapshot(learners[0]), snapshot(learners[1])))
    scored = learners[0].score(masked)
    assert [replace(sample, action_mask=None) for sample in scored] == learners[0].score(samples)
    assert [s.advantages for s in normalize_advantages(masked)] == [s.advantages for s in normalize_advantages(samples)]


def test_scores_stand_at_their_tokens():
    model = make_model()
    for sample in make_learner(model).score(make_masked()):
        expected = of_targets(log_softmax(model, sample), sample) * column(sample.action_mask)
        assert sample.old_logprobs == pytest.approx(expected.tolist(), abs=1e-12)


def test_whitening_and_the_mismatch_do_not_see_masked_tokens():
    learner = make_learner(reference=make_model(1))
    samples = learner.score(make_masked())
    disturbed = list(map(disturb, samples))
    assert normalize_advantages(samples)[0].advantages == normalize_advantages(disturbed)[0].advantages
    flat = [a for sample in normalize_advantages(disturbed) for a in sample.at_actions(sample.advantages)]
    assert column(flat).std().item() == pytest.approx(1, abs=1e-6)
    assert learner.mismatch(samples) == learner.mismatch(disturbed)


def test_a_batch_has_the_actions_alone():
    sample = Sample((1, 2), (3, 4, 5), (0.1, 0.2, 0.3), (0.0,) * 3, action_mask=(True, False, True))
    batch = collate([sample, Sample((6,), (7, 8), (0.4, 0.5), (0.0,) * 2)], columns=("advantages",))
    assert batch.action_mask_BT.tolist() == [[False, True, False, True], [True, True, False, False]]
    assert batch.target_ids_BT[batch.action_mask_BT].tolist() == [3, 5, 7, 8]
    assert batch.columns["advantages"].tolist() == pytest.approx([0.1, 0.3, 0.4, 0.5])
    assert batch.sum_responses(batch.columns["advantages"]).tolist() == pytest.approx([0.4, 0.9])


def test_a_sample_without_any_action_is_refused():
    with pytest.raises(ValueError, match="no token to learn from"):
        Sample((1,), (2, 3), (0.0, 0.0), (0.0, 0.0), action_mask=(False, False))
