"""Pure tensor formulas, one number per token. The caller sums, and divides by counts of the minibatch."""

from __future__ import annotations

import torch

from vineppo.learner.config import KLEstimator

MAX_LOG_RATIO = 20.0
"""Beyond it a ratio stays at exp(20), about 5e8, without a gradient: exp overflows fp32 at 89, and a gradient that is
infinite or nan in one token is lost in all."""

WHITEN_EPS = 1e-8
"""Added to a variance before its root is divided by, as in the paper's code."""


def ratio_of(log_ratios_N: torch.Tensor) -> torch.Tensor:
    """exp, finite and with a finite gradient whatever the log-ratio."""
    return torch.exp(log_ratios_N.clamp(max=MAX_LOG_RATIO))


def clipped_policy_loss(
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate per token (Schulman et al. 2017, eq. 7): (losses_N, ratios_N, clipped_N).

    A higher `clip_eps_high` lets rare tokens grow faster (Yu et al. 2025, "DAPO", section 3.1).
    """
    ratios_N = ratio_of(logprobs_N - old_logprobs_N)
    unclipped_N = -advantages_N * ratios_N
    clipped_N = -advantages_N * ratios_N.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    return torch.maximum(unclipped_N, clipped_N), ratios_N, clipped_N > unclipped_N


def clipped_value_loss(
    values_N: torch.Tensor, old_values_N: torch.Tensor, returns_N: torch.Tensor, *, clip_eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's value loss per token, the larger of the squared errors with and without a bounded move; and where it is
    the bounded one: (losses_N, clipped_N).

    0.5 max((v - R)^2, (clip(v, v_old - eps, v_old + eps) - R)^2), as in the paper's code.
    """
    bounded_N = torch.minimum(torch.maximum(values_N, old_values_N - clip_eps), old_values_N + clip_eps)
    free_N, tied_N = (values_N - returns_N).square(), (bounded_N - returns_N).square()
    return 0.5 * torch.maximum(free_N, tied_N), tied_N > free_N


def kl_to_reference(
    logprobs_N: torch.Tensor,
    ref_logprobs_N: torch.Tensor,
    *,
    estimator: KLEstimator,
    clamp: float,
    ratios_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Per-token estimates of KL(policy || reference) from the policy's own tokens, d = log ref - log policy.

    k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman 2020, "Approximating KL divergence"). As in the paper's code
    an estimate is clamped to [0, clamp]; k1, which is rightly negative at times, to [-clamp, clamp].

    `ratios_N`, of the policy to the one that drew the tokens, make the expected gradient that of the KL itself, where
    nothing is clamped (DeepSeek-AI 2025, "DeepSeek-V3.2", section 3.1, for k3). k1 and k3 are estimates of the KL, so
    they are differentiated through the ratio; k2 is not one, but its gradient is an estimate of the KL's, so for it the
    ratio is a weight.
    """
    d_N = ref_logprobs_N - logprobs_N
    if estimator == "k1":
        kl_N = (-d_N).clamp(-clamp, clamp)
    elif estimator == "k2":
        kl_N = (d_N.square() / 2).clamp(0, clamp)
    else:
        d_N = d_N.clamp(max=MAX_LOG_RATIO)
        kl_N = (torch.exp(d_N) - d_N - 1).clamp(0, clamp)
    if ratios_N is None:
        return kl_N
    return kl_N * (ratios_N.detach() if estimator == "k2" else ratios_N)


def whiten(values_N: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the unbiased variance, as the paper's code; one value becomes 0."""
    if values_N.numel() < 2:
        return torch.zeros_like(values_N)
    return (values_N - values_N.mean()) / torch.sqrt(values_N.var() + WHITEN_EPS)
