"""Formulas against exact sums over small distributions, and against the same thing written as a loop."""

import math
import random
from itertools import pairwise

import pytest
import torch

from vineppo.credit.ppo import compute_gae
from vineppo.learner.config import KLEstimator
from vineppo.learner.losses import (
    MAX_LOG_RATIO,
    clipped_policy_loss,
    clipped_value_loss,
    kl_to_reference,
    ratio_of,
    whiten,
)

KINDS: tuple[KLEstimator, ...] = ("k1", "k2", "k3")


def test_the_surrogate_is_the_pessimistic_one_token_by_token():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    losses, ratios, clipped = clipped_policy_loss(new, old, advantages, clip_eps_low=0.2, clip_eps_high=0.2)
    for n, o, a, loss, ratio, cut in zip(new, old, advantages, losses, ratios, clipped, strict=True):
        r = math.exp(n - o)
        surrogate = min(r * a, min(max(r, 0.8), 1.2) * a)
        assert (float(ratio), float(loss)) == pytest.approx((r, float(-surrogate)), rel=1e-12)
        assert bool(cut) == (r * a > surrogate)


def test_the_two_bounds_are_each_its_own():
    """With [1 - 0.1, 1 + 0.4] a good token may grow by 0.4 and a bad one may shrink by 0.1."""
    generator = torch.Generator().manual_seed(4)
    new, old, advantages = torch.randn(3, 500, generator=generator, dtype=torch.float64) / 2
    losses, _, clipped = clipped_policy_loss(new, old, advantages, clip_eps_low=0.1, clip_eps_high=0.4)
    for n, o, a, loss, cut in zip(new, old, advantages, losses, clipped, strict=True):
        r = math.exp(n - o)
        bounded = 0.9 if r < 0.9 else 1.4 if r > 1.4 else r
        assert float(loss) == pytest.approx(-min(r * float(a), bounded * float(a)), rel=1e-12)
        assert bool(cut) == ((a > 0 and r > 1.4) or (a < 0 and r < 0.9))


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


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("apart", [0.0, 0.7])
def test_corrected_by_the_ratio_the_expected_gradient_is_that_of_the_kl(estimator, apart):
    """Whoever drew the tokens. Without the correction k3's is another one even where the policy itself drew them."""
    generator = torch.Generator().manual_seed(4)
    logits, direction, ref_logits = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    reference = ref_logits.log_softmax(-1)
    old = (logits.detach() + apart * direction).log_softmax(-1)

    def gradient(corrected):
        new = logits.log_softmax(-1)
        ratios = (new - old).exp() if corrected else None
        kl = kl_to_reference(new, reference, estimator=estimator, clamp=1e9, ratios_N=ratios)
        return torch.autograd.grad((old.exp() * kl).sum(), logits)[0]

    new = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((new.exp() * (new - reference)).sum(), logits)
    assert torch.allclose(gradient(True), exact, atol=1e-12)
    if (estimator, apart) != ("k2", 0.0):
        assert (gradient(False) - exact).norm() > 0.1 * exact.norm()


LOG_PROBS = [0.0, -1e-8, -0.5, -3.0, -19.9, -20.0, -20.1, -88.0, -90.0, -120.0, -750.0, -1e4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clamp", [10.0, 1e9])
def test_no_log_prob_makes_a_loss_or_a_gradient_that_is_not_finite(dtype, clamp):
    new, old = (column.clone() for column in torch.cartesian_prod(*[torch.tensor(LOG_PROBS, dtype=dtype)] * 2).T)
    new.requires_grad_()
    ratios = ratio_of(new - old)
    losses = [
        *(kl_to_reference(new, old, estimator=e, clamp=clamp, ratios_N=r) for e in KINDS for r in (None, ratios)),
        *(
            clipped_policy_loss(new, old, torch.full_like(old, a), clip_eps_low=0.2, clip_eps_high=0.3)[0]
            for a in (-7.0, 0.0, 7.0)
        ),
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.sum(), new, retain_graph=True)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_within_the_bound_nothing_is_changed_by_a_bit(dtype):
    generator = torch.Generator().manual_seed(5)
    d = (torch.rand(10_000, generator=generator, dtype=dtype) * 140 - 120).clamp(max=MAX_LOG_RATIO).requires_grad_()
    bounded = [ratio_of(d), kl_to_reference(-d, torch.zeros_like(d), estimator="k3", clamp=1e9)]
    plain = [torch.exp(d), (torch.exp(d) - d - 1).clamp(0, 1e9)]
    for one, other in zip(bounded, plain, strict=True):
        assert torch.equal(one, other)
        gradients = (torch.autograd.grad(loss.sum(), d, retain_graph=True)[0] for loss in (one, other))
        assert torch.equal(*gradients)


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


def make_episode(length: int, seed: int) -> tuple[list[float], list[float]]:
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(length)], [rng.gauss(0, 1) for _ in range(length + 1)]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_gae_is_the_discounted_sum_of_td_errors(gamma, gae_lambda, length):
    rewards, values = make_episode(length, seed=length)
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
    expected = [sum((gamma * gae_lambda) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)]
    assert compute_gae(rewards, values, gamma=gamma, gae_lambda=gae_lambda) == pytest.approx(expected, abs=1e-12)


def test_gae_at_lambda_1_is_return_minus_value_and_at_lambda_0_the_td_error():
    _, values = make_episode(20, seed=7)
    values[-1] = 0.0  # the episode ends
    rewards = [0.0] * 19 + [0.7]
    whole = compute_gae(rewards, values, gamma=1.0, gae_lambda=1.0)
    assert whole == pytest.approx([0.7 - value for value in values[:-1]], abs=1e-12)
    one_step = compute_gae(rewards, values, gamma=1.0, gae_lambda=0.0)
    assert one_step[:-1] == pytest.approx([after - before for before, after in pairwise(values[:-1])], abs=1e-12)
    assert one_step[-1] == pytest.approx(0.7 - values[-2])
    assert sum(one_step) == pytest.approx(whole[0])  # gamma = 1: TD errors telescope


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_exact_where_values_are(seed):
    """With V(s_t) the discounted return from t on, nothing is left to credit, whatever lambda."""
    rewards, _ = make_episode(12, seed)
    for gamma in (0.8, 1.0):
        values = [sum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(13)]
        for gae_lambda in (0.0, 0.6, 1.0):
            assert compute_gae(rewards, values, gamma=gamma, gae_lambda=gae_lambda) == pytest.approx([0.0] * 12)


def test_the_value_loss_is_the_larger_of_free_and_bounded():
    generator = torch.Generator().manual_seed(5)
    values, old, returns = torch.randn(3, 500, generator=generator, dtype=torch.float64)
    losses, clipped = clipped_value_loss(values, old, returns, clip_eps=0.2)
    for v, o, r, loss, cut in zip(values.tolist(), old.tolist(), returns.tolist(), losses, clipped, strict=True):
        moved = v if abs(v - o) < 0.2 else o + math.copysign(0.2, v - o)
        free, bounded = (v - r) ** 2, (moved - r) ** 2
        assert float(loss) == pytest.approx(max(free, bounded) / 2, rel=1e-12)
        assert bool(cut) == (bounded > free)
    assert 0 < clipped.sum() < 500


@pytest.mark.parametrize(
    ("value", "target", "pull"),
    [(0.1, 1.0, -0.9), (0.3, 1.0, 0.0), (-0.3, -1.0, 0.0), (0.3, -1.0, 1.3), (0.3, 0.25, 0.05), (-0.1, -1.0, 0.9)],
)
def test_a_value_that_has_moved_far_enough_towards_its_target_pulls_no_more(value, target, pull):
    """From 0, within 0.2; the gradient is that of half the squared error, or none."""
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    losses, _ = clipped_value_loss(values, torch.zeros(1), torch.tensor([target]).double(), clip_eps=0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert gradient.item() == pytest.approx(pull, abs=1e-7)
