"""Credit estimators: all that differs between methods.

CREDIT maps `credit.name` to a class with a `Config` and a `make(config, parts)`; what it makes satisfies
`vineppo.types.CreditEstimator`.
"""

from vineppo.credit.grpo import GRPO
from vineppo.credit.ppo import PPO
from vineppo.credit.rloo import RLOO
from vineppo.credit.vineppo import VinePPO

CREDIT = {"vineppo": VinePPO, "ppo": PPO, "grpo": GRPO, "rloo": RLOO}
