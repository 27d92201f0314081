"""Credit estimators: all that differs between methods. CREDIT maps `credit.name` to a class with a `Config`.

A class takes (config, environment) and satisfies `vineppo.types.CreditEstimator`.
"""

from vineppo.credit.vineppo import VinePPO

CREDIT = {"vineppo": VinePPO}
