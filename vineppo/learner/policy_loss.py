"""The loss of policy-gradient methods: clipped surrogate, entropy bonus, KL to the reference."""

from __future__ import annotations

import torch

from vineppo.batch import Batch
from vineppo.learner.config import LearnerConfig
from vineppo.learner.losses import MAX_LOG_RATIO, clipped_policy_loss, kl_to_reference, ratio_of
from vineppo.learner.objective import Counts, Loss, Max, Sum, token_weights
from vineppo.models.logprobs import Readings


def policy_loss(batch: Batch, readings: Readings, config: LearnerConfig, counts: Counts) -> Loss:
    """The clipped surrogate (by default the mean over tokens), less the entropy bonus, plus KL (sum over tokens, mean
    over rollouts) where samples have reference log-probs.

    The two normalisations are those of the paper's code, whose coefficient 1e-4 means that sum. A minibatch whose mean
    ratio exceeds `max_mean_ratio` is skipped.
    """
    logprobs_N, old_N = readings.logprobs_N, batch.columns["old_logprobs"]
    losses_N, ratios_N, clipped_N = clipped_policy_loss(
        logprobs_N,
        old_N,
        batch.columns["advantages"],
        clip_eps_low=config.clip_eps_low,
        clip_eps_high=config.clip_eps_high,
    )
    extra: dict[str, Sum | Max] = {}
    if config.entropy_coef > 0:
        extra["policy/entropy"] = Sum(readings.entropies_N.sum(), per=counts.num_tokens)
    if config.max_importance is not None:
        importance_N = engine_importance(batch, config)
        losses_N = losses_N * importance_N.clamp(max=config.max_importance)
        extra["policy/importance_max"] = Max(importance_N.max())
    weights_N = token_weights(batch, readings, config, counts)
    loss = (weights_N * (losses_N - config.entropy_coef * readings.entropies_N)).sum()
    kl = logprobs_N.new_zeros(())
    if "ref_logprobs" in batch.columns:
        kl = reference_kl(batch, readings, ratios_N, config)
        loss = loss + config.kl_coef * kl / counts.num_rows
    log_ratios_N = (logprobs_N - old_N).detach().clamp(max=MAX_LOG_RATIO)
    metrics = {
        "policy/loss": Sum(loss),
        "policy/clip_frac": Sum(clipped_N.sum(), per=counts.num_tokens),
        "policy/ratio_mean": Sum(ratios_N.sum(), per=counts.num_tokens),
        "policy/ratio_max": Max(ratios_N.max()),
        "policy/approx_kl": Sum((torch.expm1(log_ratios_N) - log_ratios_N).sum(), per=counts.num_tokens),
        "policy/nll": Sum(-logprobs_N.sum(), per=counts.num_tokens),
        "kl/reference": Sum(kl, per=counts.num_rows),
    }
    return Loss(loss, metrics | extra, limits={"policy/ratio_mean": config.max_mean_ratio})


def engine_importance(batch: Batch, config: LearnerConfig) -> torch.Tensor:  # [N]
    """Policy over engine probability of each action, at the start of the iteration."""
    importance_N = ratio_of(batch.columns["old_logprobs"] - batch.columns["sampling_logprobs"])
    if config.renormalize_nucleus:  # the engine's are of the full softmax
        importance_N = importance_N * torch.exp(batch.columns["nucleus_logmass"])
    return importance_N


def reference_kl(batch: Batch, readings: Readings, ratios_N: torch.Tensor, config: LearnerConfig) -> torch.Tensor:
    """Summed over the batch's actions, each as often as it counts."""
    kl_N = kl_to_reference(
        readings.logprobs_N,
        batch.columns["ref_logprobs"],
        estimator=config.kl_estimator,
        clamp=config.kl_clamp,
        ratios_N=ratios_N if config.kl_ratio_correction else None,
    )
    return (kl_N * batch.columns["weights"] if "weights" in batch.columns else kl_N).sum()
