"""The policy loss on a real tiny model: gradients are those of the loss as written down, however the work is cut."""

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

from vineppo.learner.config import LearnerConfig
from vineppo.learner.losses import clipped_policy_loss, kl_to_reference
from vineppo.learner.policy_loss import policy_loss
from vineppo.methods.sft import nll_loss
from vineppo.sample import Sample


@pytest.mark.parametrize("options", [*AGGREGATIONS, {"entropy_coef": 0.3, "max_importance": 1.1}], ids=str)
@pytest.mark.parametrize("loss", [policy_loss, nll_loss])
def test_gradients_do_not_depend_on_microbatches_or_order(loss, options):
    reference = make_model(1)
    samples = make_scored(make_learner(reference=reference))
    whole = gradients(make_learner(reference=reference, **options), samples, loss)
    shuffled = random.Random(1).sample(samples, len(samples))
    for tokens, minibatch in ((1, samples), (30, samples), (10**6, shuffled), (40, shuffled)):
        learner = make_learner(reference=reference, microbatch_tokens=tokens, **options)
        expect_equal(whole, gradients(learner, minibatch, loss))


def written_loss(model: Any, reference: Any, samples: list[Sample], config: LearnerConfig) -> torch.Tensor:
    num_tokens = sum(len(sample.response_ids) for sample in samples)
    policy = kl = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        rows_LV = log_softmax(model, sample)
        new, old = of_targets(rows_LV, sample), column(sample.old_logprobs)
        losses, _, _ = clipped_policy_loss(
            new, old, column(sample.advantages), clip_eps_low=config.clip_eps_low, clip_eps_high=config.clip_eps_high
        )
        if config.max_importance is not None:
            importance = [math.exp(o - s) for o, s in zip(old, sample.sampling_logprobs, strict=True)]
            losses = losses * column([min(weight, config.max_importance) for weight in importance])
        losses = losses - config.entropy_coef * -(rows_LV.exp() * rows_LV).sum(-1)
        if config.loss_aggregation == "sequence":
            policy = policy + losses.mean() / len(samples)
        elif config.loss_aggregation == "constant":
            assert config.loss_length is not None
            policy = policy + losses.sum() / config.loss_length / len(samples)
        else:
            policy = policy + losses.sum() / num_tokens
        ref = of_targets(log_softmax(reference, sample), sample).detach()
        estimates = kl_to_reference(new, ref, estimator=config.kl_estimator, clamp=config.kl_clamp)
        kl = kl + (estimates * (new - old).exp() if config.kl_ratio_correction else estimates).sum()
    return policy + config.kl_coef * kl / len(samples)


@pytest.mark.parametrize(
    "options",
    [
        *AGGREGATIONS,
        {"entropy_coef": 0.3},
        {"entropy_coef": 0.3, "loss_aggregation": "sequence"},
        {"max_importance": 1.1},
        {"max_importance": 0.9, "loss_aggregation": "constant", "loss_length": 5},
        {"clip_eps_low": 0.1, "clip_eps_high": 0.4, "kl_estimator": "k1"},
        {"kl_estimator": "k2", "kl_clamp": 0.05},
        {"kl_ratio_correction": True},
        {"kl_ratio_correction": True, "kl_estimator": "k1"},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_the_loss_as_written_down(options):
    reference, model = make_model(1), make_model()
    samples = make_scored(make_learner(model, reference))
    learner = make_learner(reference=reference, **options)
    loss = written_loss(model, reference, samples, learner.config)
    expect_equal(gradients(learner, samples), torch.autograd.grad(loss, list(model.parameters())))
    assert learner.step(samples, policy_loss)["policy/loss"] == pytest.approx(loss.item(), abs=1e-12)


def test_metrics_of_a_step_are_means_over_its_tokens():
    reference, model = make_model(1), make_model()
    samples = make_scored(make_learner(model, reference))
    rows = [log_softmax(model, sample).detach() for sample in samples]
    new = torch.cat([of_targets(of_one, sample) for of_one, sample in zip(rows, samples, strict=True)])
    old, sampling = (
        column([x for s in samples for x in getattr(s, name)]) for name in ("old_logprobs", "sampling_logprobs")
    )
    ref = torch.cat([of_targets(log_softmax(reference, sample), sample).detach() for sample in samples])
    learner = make_learner(
        reference=reference, entropy_coef=0.1, max_importance=1.1, kl_clamp=1e9, microbatch_tokens=40
    )
    metrics = learner.step(samples, policy_loss)
    assert metrics["policy/ratio_mean"] == pytest.approx((new - old).exp().mean().item())
    assert metrics["policy/ratio_max"] == pytest.approx((new - old).exp().max().item())
    assert metrics["policy/nll"] == pytest.approx(-new.mean().item())
    assert metrics["policy/entropy"] == pytest.approx(torch.cat([-(r.exp() * r).sum(-1) for r in rows]).mean().item())
    assert metrics["policy/importance_max"] == pytest.approx((old - sampling).exp().max().item())
    assert metrics["kl/reference"] == pytest.approx(((ref - new).exp() - (ref - new) - 1).sum().item() / len(samples))


# top_p and top_k


def test_the_first_ratio_of_an_iteration_is_1():
    learner = make_learner(reference=make_model(1))
    metrics = learner.step(learner.score(make_samples()), policy_loss)
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-9)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-9)
    assert metrics["policy/clip_frac"] == 0
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)


def test_a_step_raises_what_had_a_good_advantage_and_lowers_what_had_a_bad_one():
    learner = make_learner(lr=1e-3)
    good, bad = (
        replace(s, advantages=(a,) * len(s.response_ids)) for s, a in zip(make_samples(2), (1, -1), strict=True)
    )
    before = learner.score([good, bad])
    learner.step(before, policy_loss)
    after = learner.score([good, bad])
    changes = [sum(b.old_logprobs) - sum(a.old_logprobs) for a, b in zip(before, after, strict=True)]  # type: ignore[arg-type]
    assert changes[0] > 0 > changes[1]


@pytest.mark.parametrize(
    "wild", [{"ref_logprobs": 150.0}, {"ref_logprobs": -1e4}, {"sampling_logprobs": -1e4}, {"sampling_logprobs": 0.0}]
)
@pytest.mark.parametrize("options", [{}, {"kl_ratio_correction": True}])
def test_one_wild_token_does_not_cost_the_step(wild, options):
    """Of a reference or an engine that is far away. A policy that is far from its own old self costs the step."""
    learner = make_learner(make_model(dtype=torch.float32), make_model(1, torch.float32), max_importance=2.0, **options)
    first, *rest = learner.score(make_samples())
    ((name, number),) = wild.items()
    before = snapshot(learner)
    metrics = learner.step([replace(first, **{name: (number, *getattr(first, name)[1:])}), *rest], policy_loss)
    assert metrics["optim/num_skipped_steps"] == 0
    assert all(math.isfinite(number) for number in metrics.values())
    assert any(not torch.equal(one, other) for one, other in zip(before, snapshot(learner), strict=True))
