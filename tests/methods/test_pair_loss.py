"""The loss of pairs: the formula, and steps on a real tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_learner import expect_equal, gradients, log_softmax, make_learner, make_model, make_samples, of_targets

from vineppo.learner.policy import PolicyLearner
from vineppo.methods.dpo import DPOConfig, Pair, dpo_loss, pair_loss

PAIR_LOSS = partial(pair_loss, dpo=DPOConfig(beta=0.3, positive_lambda=5.0, label_smoothing=0.1))


def log_sigmoid(z: float) -> float:
    return -math.log(1 + math.exp(-z))


def make_columns() -> torch.Tensor:  # [4, P]: chosen, rejected, and what the reference gives them
    return -torch.rand(4, 100, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 20


@pytest.mark.parametrize("positive_lambda", [0.0, 5.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_dpo_positive_is_the_formula(positive_lambda, label_smoothing):
    options = {"beta": 0.3, "positive_lambda": positive_lambda, "label_smoothing": label_smoothing}
    losses, margins = dpo_loss(*make_columns(), **options)
    for c, r, ref_c, ref_r, loss, margin in zip(*make_columns().tolist(), losses, margins, strict=True):
        plain = math.log(math.exp(c) / math.exp(ref_c)) - math.log(math.exp(r) / math.exp(ref_r))
        z = 0.3 * (plain - positive_lambda * max(0.0, ref_c - c))
        expected = -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)
        assert float(loss) == pytest.approx(expected, rel=1e-9)
        assert float(margin) == pytest.approx(0.3 * plain, rel=1e-9)


def test_at_the_reference_every_pair_loses_log_2():
    chosen, rejected, *_ = make_columns()
    losses, margins = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1, positive_lambda=50.0, label_smoothing=0.0)
    assert torch.allclose(losses, torch.full_like(losses, math.log(2)), atol=1e-15)
    assert margins.abs().max() == 0


@pytest.mark.parametrize("positive_lambda", [0.0, 50.0])
def test_pairs_pull_the_better_up_and_the_worse_down(positive_lambda):
    chosen, rejected, ref_chosen, ref_rejected = make_columns()
    chosen, rejected = chosen.requires_grad_(), rejected.requires_grad_()
    losses, _ = dpo_loss(
        chosen, rejected, ref_chosen, ref_rejected, beta=0.1, positive_lambda=positive_lambda, label_smoothing=0.0
    )
    up, down = torch.autograd.grad(losses.sum(), (chosen, rejected))
    lost = chosen.detach() < ref_chosen  # less likely than it was
    assert (up < 0).all()
    assert (down > 0).all()
    assert torch.allclose(-up[~lost], down[~lost])
    assert torch.allclose(-up[lost], (1 + positive_lambda) * down[lost])
    assert 0 < lost.sum() < len(lost)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_log_prob_makes_a_loss_or_a_gradient_that_is_not_finite(dtype):
    numbers = torch.tensor([0.0, -1e-8, -0.5, -3.0, -20.0, -88.0, -90.0, -750.0, -1e4], dtype=dtype)
    new, old = (column.clone() for column in torch.cartesian_prod(numbers, numbers).T)
    new.requires_grad_()
    for loss in dpo_loss(new, old, old, old, beta=0.1, positive_lambda=50.0, label_smoothing=0.1):
        (gradient,) = torch.autograd.grad(loss.sum(), new, retain_graph=True)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


# Steps


def make_pairs(learner: PolicyLearner) -> list[Pair]:
    samples = make_samples(12)
    chosen = learner.score(samples[:6])
    rejected = learner.score(
        [replace(r, prompt_ids=c.prompt_ids) for c, r in zip(samples[:6], samples[6:], strict=True)]
    )
    return [Pair(*pair) for pair in zip(chosen, rejected, strict=True)]


def test_gradients_of_pairs_do_not_depend_on_microbatches_or_order():
    reference = make_model(1)
    pairs = make_pairs(make_learner(reference=reference))
    whole = gradients(make_learner(reference=reference), pairs, PAIR_LOSS)
    for tokens, minibatch in ((1, pairs), (50, pairs), (10**6, pairs[::-1]), (80, pairs[::-1])):
        learner = make_learner(reference=reference, microbatch_tokens=tokens)
        expect_equal(whole, gradients(learner, minibatch, PAIR_LOSS))


# Second way: the whole [T, V] softmax of each rollout alone, sums as in the docstrings


def test_the_loss_of_pairs_is_the_one_written_down():
    reference, model = make_model(1), make_model()
    pairs = make_pairs(make_learner(model, reference))
    losses, margins, gains, lost = [], [], [], 0
    for pair in pairs:
        c, r = (of_targets(log_softmax(model, sample), sample).sum() for sample in (pair.chosen, pair.rejected))
        ref_c, ref_r = (of_targets(log_softmax(reference, s), s).sum().detach() for s in (pair.chosen, pair.rejected))
        margin = 0.3 * ((c - ref_c) - (r - ref_r))
        z = margin - 0.3 * 5.0 * torch.relu(ref_c - c)
        losses.append(0.9 * torch.log(1 + torch.exp(-z)) + 0.1 * torch.log(1 + torch.exp(z)))
        margins.append(margin.item())
        gains.append((c - ref_c).item())
        lost += int(c < ref_c)
    assert 0 < lost < len(pairs)  # both branches of the penalty
    learner = make_learner(reference=reference)
    loss = torch.stack(losses).mean()
    expect_equal(gradients(learner, pairs, PAIR_LOSS), torch.autograd.grad(loss, list(model.parameters())))
    metrics = learner.step(pairs, PAIR_LOSS)
    assert metrics["dpo/loss"] == pytest.approx(loss.item())
    assert metrics["dpo/margin"] == pytest.approx(sum(margins) / len(pairs))
    assert metrics["dpo/ordered_frac"] == pytest.approx(sum(margin > 0 for margin in margins) / len(pairs))
    assert metrics["dpo/chosen_gain"] == pytest.approx(sum(gains) / len(pairs))


def test_steps_on_pairs_tell_them_apart():
    reference = make_model()
    learner = make_learner(reference=reference, lr=3e-3)
    pairs = make_pairs(learner)
    steps = [learner.step(pairs, PAIR_LOSS) for _ in range(30)]
    assert steps[0]["dpo/margin"] == pytest.approx(0, abs=1e-9)
    assert steps[-1]["dpo/loss"] < steps[0]["dpo/loss"]
    assert steps[-1]["dpo/ordered_frac"] == 1
