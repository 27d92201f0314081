"""Credit: all that differs between methods. CREDIT maps the recipe's `credit.name` to a part (vineppo.parts).

One estimator per file. common.py has what they share, advantages.py the formulas of comparison within a group.
"""

from vineppo.credit.grpo import GRPO
from vineppo.credit.potential import Potential
from vineppo.credit.ppo import PPO
from vineppo.credit.rloo import RLOO
from vineppo.credit.tree import TreeCredit
from vineppo.credit.vine_critic import VineCritic
from vineppo.credit.vineppo import VinePPO
from vineppo.credit.vines import Vines

CREDIT = {
    "vineppo": VinePPO,
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
    "tree": TreeCredit,
    "potential": Potential,
    "vine_critic": VineCritic,
    "vines": Vines,
}
