"""Tokens that count differently: a loss written down as a loop over them, and what weights must not change."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_learner import (
    AGGREGATIONS,
    expect_equal,
    gradients,
    log_softmax,
    make_learner,
    make_model,
    make_samples,
    of_targets,
    snapshot,
)

from vineppo.learner.objective import Counts
from vineppo.learner.policy_loss import policy_loss
from vineppo.sample import Sample


def make_weighted() -> list[Sample]:
    """Half of them extra, the rest rollouts; about a third of the tokens are no actions."""
    rng = random.Random(7)
    return [
        replace(
            sample,
            weights=tuple(rng.uniform(0, 1) for _ in sample.response_ids),
            action_mask=(*(rng.random() < 0.7 for _ in sample.response_ids[1:]), True),
            is_extra=i % 2 == 1,
        )
        for i, sample in enumerate(make_samples())
    ]


@pytest.mark.parametrize("options", [{}, {"loss_aggregation": "constant", "loss_length": 9}], ids=str)
def test_surrogate_entropy_and_kl_are_those_of_a_loop_in_which_tokens_count_what_they_weigh(options):
    """At the policy that sampled, where a ratio is 1 and its gradient that of the log-prob."""
    model, reference = make_model(), make_model(1)
    learner = make_learner(model, reference, entropy_coef=0.3, **options)
    samples = learner.score(make_weighted())
    num_rollouts = sum(not sample.is_extra for sample in samples)
    total = sum(
        w for s in samples for w, is_action in zip(s.weights or (), s.action_mask or (), strict=True) if is_action
    )
    scale = 1 / total if not options else 1 / num_rollouts / 9
    loss: Any = 0.0
    for sample in samples:
        rows = log_softmax(model, sample)
        new, ref = of_targets(rows, sample), of_targets(log_softmax(reference, sample), sample).detach()
        entropies = -(rows.exp() * rows).sum(-1)
        for t, is_action in enumerate(sample.action_mask or ()):
            if is_action:
                surrogate = -sample.advantages[t] * (new[t] - new[t].detach()).exp() - 0.3 * entropies[t]
                d = ref[t] - new[t]
                kl = (d.exp() - d - 1).clamp(0, 10)
                loss = loss + (sample.weights or ())[t] * (scale * surrogate + 0.1 / num_rollouts * kl)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    expect_equal(gradients(learner, samples), expected)
    assert learner.step(samples, policy_loss)["policy/loss"] == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("options", AGGREGATIONS, ids=str)
def test_weights_of_one_are_none_bit_for_bit(options):
    learners = [make_learner(reference=make_model(1), entropy_coef=0.1, **options) for _ in range(2)]
    plain = learners[0].score(make_samples())
    weighed = [replace(sample, weights=(1.0,) * len(sample.response_ids)) for sample in plain]
    assert learners[0].step(plain, policy_loss) == learners[1].step(weighed, policy_loss)
    assert all(map(torch.equal, snapshot(learners[0]), snapshot(learners[1])))


def test_microbatches_change_no_gradient():
    large = make_learner(reference=make_model(1))
    samples = large.score(make_weighted())
    small = make_learner(reference=make_model(1), microbatch_tokens=1)
    expect_equal(gradients(small, samples), gradients(large, samples))


def test_the_mean_ratio_is_over_tokens_whatever_they_weigh():
    """Else a minibatch of many vines would look as if the policy had moved."""
    learner = make_learner()
    samples = learner.score(make_weighted())
    light = [replace(sample, weights=tuple(w / 100 for w in sample.weights or ())) for sample in samples]
    assert learner.step(light, policy_loss)["policy/ratio_mean"] == pytest.approx(1)


def test_counts_of_a_minibatch():
    samples = make_weighted()
    counts = Counts.of([(sample,) for sample in samples])
    assert counts.num_rows == 4
    assert counts.num_tokens == sum(sum(sample.action_mask or ()) for sample in samples)
    assert counts.total_weight == pytest.approx(sum(sample.total_weight for sample in samples))
