"""Pure tensor formulas. Sums are returned, never means: the caller divides by counts of the whole minibatch."""

from __future__ import annotations

from typing import Literal

import torch

KLEstimator = Literal["k1", "k2", "k3"]


def clipped_policy_loss(
    logprobs_N: torch.Tensor, old_logprobs_N: torch.Tensor, advantages_N: torch.Tensor, *, clip_eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate per token (Schulman et al. 2017, eq. 7): (losses_N, ratios_N, clipped_N)."""
    ratios_N = torch.exp(logprobs_N - old_logprobs_N)
    unclipped_N = -advantages_N * ratios_N
    clipped_N = -advantages_N * ratios_N.clamp(1 - clip_eps, 1 + clip_eps)
    return torch.maximum(unclipped_N, clipped_N), ratios_N, clipped_N > unclipped_N


def kl_to_reference(
    logprobs_N: torch.Tensor, ref_logprobs_N: torch.Tensor, *, estimator: KLEstimator, clamp: float
) -> torch.Tensor:
    """Per-token estimates of KL(policy || reference) from the policy's own tokens, d = log ref - log policy.

    k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1 (Schulman 2020, "Approximating KL divergence"). As in the paper's code
    an estimate is clamped to [0, clamp]; k1, which is rightly negative at times, to [-clamp, clamp].
    """
    d_N = ref_logprobs_N - logprobs_N
    if estimator == "k1":
        return (-d_N).clamp(-clamp, clamp)
    if estimator == "k2":
        return (d_N.square() / 2).clamp(0, clamp)
    return (torch.exp(d_N) - d_N - 1).clamp(0, clamp)


def whiten(values_N: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the unbiased variance, as the paper's code; one value becomes 0."""
    if values_N.numel() < 2:
        return torch.zeros_like(values_N)
    return (values_N - values_N.mean()) / torch.sqrt(values_N.var() + 1e-8)
