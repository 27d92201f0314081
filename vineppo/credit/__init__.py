"""Credit: all that differs between methods. CREDIT maps the recipe's `credit.name` to a part (vineppo.parts).

One estimator per file. common.py has what they share, advantages.py the formulas of comparison within a group.
"""

from vineppo.credit.config import TreeConfig, VineCriticConfig, VinesConfig
from vineppo.credit.grpo import GRPO
from vineppo.credit.potential import Potential
from vineppo.credit.ppo import PPO
from vineppo.credit.rloo import RLOO
from vineppo.credit.vineppo import VinePPO
from vineppo.parts import Deferred

CREDIT = {
    "vineppo": VinePPO,
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
    "tree": Deferred(TreeConfig, "vineppo.credit.tree:TreeCredit"),
    "potential": Potential,
    "vine_critic": Deferred(VineCriticConfig, "vineppo.credit.vine_critic:VineCritic"),
    "vines": Deferred(VinesConfig, "vineppo.credit.vines:Vines"),
}
