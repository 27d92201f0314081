"""The knobs of learning: a recipe's [learner] section and a critic's. Without torch: a recipe is read at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vineppo.config import Config

Beta = Annotated[float, Field(ge=0, lt=1)]
KLEstimator = Literal["k1", "k2", "k3"]


class OptimConfig(Config):
    lr: float = Field(default=1e-6, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices only, never on norms and biases."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of all optimizer steps over which the rate rises linearly from 0, rounded up."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine end, as a share of lr."""
    max_grad_norm: float = Field(default=1.0, gt=0)


class OptimizerStepConfig(Config):
    microbatch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens per forward pass: less memory, same gradients."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast over fp32 master weights; auto takes it where the hardware multiplies it fast."""
    gradient_checkpointing: bool = False
    max_skipped_steps: int = Field(default=5, ge=1)
    """Skipped steps in a row after which the run stops."""
    optim: OptimConfig = OptimConfig()


class LearnerConfig(OptimizerStepConfig):
    clip_eps_low: float = Field(default=0.2, gt=0, lt=1)
    clip_eps_high: float = Field(default=0.2, gt=0)
    """Ratios are clipped to [1 - clip_eps_low, 1 + clip_eps_high]."""
    kl_coef: float = Field(default=1e-4, ge=0)
    """Weight of KL(policy || reference) in the loss of [train] recipes; 0 loads no reference model there."""
    kl_estimator: KLEstimator = "k3"
    kl_clamp: float = Field(default=10.0, gt=0)
    """Largest KL estimate of one token; above it the token pulls no more."""
    kl_ratio_correction: bool = False
    """Weigh each token's KL by the ratio of the policy to the one that drew it, which makes its gradient the KL's own
    (DeepSeek-AI 2025, "DeepSeek-V3.2"). false: the estimate alone, as in the paper."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus."""
    loss_aggregation: Literal["token", "sequence", "constant"] = "token"
    """Surrogate, entropy and NLL: mean over all tokens of a minibatch; mean over responses of their token means; or sum
    over tokens divided by responses x loss_length (Liu et al. 2025, "Dr. GRPO")."""
    loss_length: int | None = Field(default=None, ge=1)
    """Tokens, for loss_aggregation = "constant": usually sampling.max_new_tokens."""
    max_importance: float | None = Field(default=None, gt=0)
    """Weigh tokens by policy over engine probability, at most this much, for engines whose log-probs differ from the
    training forward's (Yao et al. 2025, truncated importance sampling)."""
    renormalize_nucleus: bool = False
    """Take all log-probs over the tokens that top_p and top_k keep (and the sampled one), as they were sampled."""
    max_mean_ratio: float = Field(default=10.0, gt=1)
    """A minibatch whose mean probability ratio exceeds this is skipped."""

    @model_validator(mode="after")
    def constant_needs_a_length(self) -> LearnerConfig:
        if (self.loss_aggregation == "constant") != (self.loss_length is not None):
            raise ValueError('loss_aggregation = "constant" and loss_length go together: give both or neither')
        return self


class CriticConfig(OptimizerStepConfig):
    value_clip_eps: float = Field(default=0.2, gt=0)
    """How far a value may move within an iteration before its loss stops rewarding it."""


class ActionCriticConfig(OptimizerStepConfig):
    backbone: Literal["policy", "own"] = "policy"
    """policy: a small head on the hidden states of the policy as it trains, at the price of one forward pass and of
    holding them, one vector for every token of an iteration.
    own: a copy of the initial policy below the head, trained with it."""
    width: int = Field(default=128, ge=1)
    """Of the head's hidden layers."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over an iteration's responses, vines included."""
    minibatch_size: int = Field(default=8, ge=1)
    """Responses per optimizer step."""
    optim: OptimConfig = OptimConfig(lr=1e-3, schedule="constant", warmup_ratio=0.0)

    @model_validator(mode="after")
    def the_policy_is_not_trained_here(self) -> ActionCriticConfig:
        if self.gradient_checkpointing and self.backbone == "policy":
            raise ValueError('gradient_checkpointing saves memory with backbone = "own" only')
        return self
