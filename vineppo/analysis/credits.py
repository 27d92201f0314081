"""Credit by every estimator for the same rollouts, and the tokens that each had to sample for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.subject import Subject
from vineppo.credit.common import CreditContext
from vineppo.credit.grpo import GRPO, GRPOConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.protocols import CreditEstimator
from vineppo.seeding import derive_seed
from vineppo.types import Credit, Group


@dataclass(frozen=True)
class Credited:
    credits: list[list[Credit]]  # [P][G]
    num_tokens: int
    """Sampled per rollout: the rollout itself, and its vines."""


def credit_all(subject: Subject, groups: Sequence[Group], config: AnalysisConfig) -> dict[str, Credited]:
    """The estimators of training, not yet whitened: the run's own as it was configured (but for K), the others as they
    are by default; PPO where the run has a critic."""
    environment, own = subject.environment, subject.recipe.credit
    vines = own if isinstance(own, VinePPOConfig) else VinePPOConfig()
    context = CreditContext(environment)
    estimators: dict[str, CreditEstimator] = {
        **{f"VinePPO K={k}": VinePPO(vines.model_copy(update={"num_vines": k}), context) for k in config.vines},
        "GRPO": GRPO(own if isinstance(own, GRPOConfig) else GRPOConfig()),
        "RLOO": RLOO(RLOOConfig()),
        **({"PPO": subject.ppo} if subject.ppo else {}),
    }
    num_rollouts = sum(map(len, groups))
    num_tokens = sum(rollout.num_actions for group in groups for rollout in group)
    usage = environment.engine.usage
    found = {}
    for name, estimator in estimators.items():
        before = usage["vine"]
        credits = estimator.assign(groups, seed=derive_seed(config.seed, "credit")).credits
        found[name] = Credited(credits, round((num_tokens + usage["vine"] - before) / num_rollouts))
    return found
