"""Formulas against exact sums over small distributions, and against the same thing written as a loop."""

import math

import pytest
import torch

from vineppo.losses import clipped_policy_loss, kl_to_reference, whiten


def test_the_surrogate_is_the_pessimistic_one_token_by_token():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    losses, ratios, clipped = clipped_policy_loss(new, old, advantages, clip_eps_low=0.2, clip_eps_high=0.2)
    for n, o, a, loss, ratio, cut in zip(new, old, advantages, losses, ratios, clipped, strict=True):
        r = math.exp(n - o)
        surrogate = min(r * a, min(max(r, 0.8), 1.2) * a)
        assert (float(ratio), float(loss)) == pytest.approx((r, float(-surrogate)), rel=1e-12)
        assert bool(cut) == (r * a > surrogate)


@pytest.mark.parametrize(
    ("ratio", "advantage", "pulls"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, -1.0, False), (0.5, 1.0, True), (1.0, 1.0, True), (1.1, -1.0, True)],
)
def test_a_token_that_has_moved_far_enough_pulls_no_more(ratio, advantage, pulls):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    losses, _, _ = clipped_policy_loss(
        logprob, torch.zeros(1), torch.tensor([advantage]), clip_eps_low=0.2, clip_eps_high=0.2
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logprob)
    assert gradient.item() == pytest.approx(-advantage * ratio if pulls else 0.0)


def exact_expectation(estimator, policy, reference):
    estimates = kl_to_reference(policy.log(), reference.log(), estimator=estimator, clamp=1e9)
    return (policy * estimates).sum().item()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        policy, reference = torch.randn(2, 12, generator=generator, dtype=torch.float64).softmax(-1)
        kl = (policy * (policy / reference).log()).sum().item()
        assert exact_expectation(estimator, policy, reference) == pytest.approx(kl, rel=1e-9)


def test_k2_agrees_near_the_reference():
    """Its bias is of third order in the difference: a tenth of the difference, a thousandth of the bias."""
    generator = torch.Generator().manual_seed(2)
    logits, direction = torch.randn(2, 12, generator=generator, dtype=torch.float64)

    def bias(step):
        policy, reference = (logits + step * direction).softmax(-1), logits.softmax(-1)
        kl = (policy * (policy / reference).log()).sum().item()
        return abs(exact_expectation("k2", policy, reference) - kl)

    assert bias(0.01) < bias(0.1) / 500


@pytest.mark.parametrize(("estimator", "lowest"), [("k1", -10.0), ("k2", 0.0), ("k3", 0.0)])
def test_estimates_are_clamped(estimator, lowest):
    far = torch.tensor([-50.0, 0.0, 50.0])
    estimates = kl_to_reference(far, torch.zeros(3), estimator=estimator, clamp=10.0)
    assert estimates.max() == 10.0
    assert estimates.min() == lowest
    assert estimates[1] == 0.0


def test_whitened_numbers_have_mean_0_and_unbiased_variance_1():
    values = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 7 + 5
    white = whiten(values)
    assert white.mean().item() == pytest.approx(0, abs=1e-12)
    assert white.var().item() == pytest.approx(1, rel=1e-8)
    assert torch.allclose(whiten(values * 3 - 11), white, atol=1e-8)


@pytest.mark.parametrize("values", [[], [4.0], [4.0, 4.0, 4.0]])
def test_numbers_that_do_not_differ_become_0(values):
    assert torch.equal(whiten(torch.tensor(values)), torch.zeros(len(values)))
