"""What is left of a gradient's mean square when its baselines are fitted: alpha + beta v in place of v.

From sums over segments of the weight w and its products with the baseline v and the end value E: w, wv, wv^2, wE, wvE,
wE^2, the six columns here. The constants of each response come from all others, as an estimator's come from earlier
iterations: fitted to the response itself they would flatter the forecast.
"""

from __future__ import annotations

import numpy as np

PRIOR_COUNT = 16
"""Responses that the sum over all positions counts for at each: pilots are too few for every position by itself."""
FEW = 1e-9


def squares_left(sums_nS6: np.ndarray) -> np.ndarray:  # [n]
    """sum_j w (E - alpha_j - beta_j v)^2 of every response, by sums [n, S, 6] of the positions j."""
    others_nS6 = sums_nS6.sum(axis=0) - sums_nS6
    totals_n16 = others_nS6.sum(axis=1, keepdims=True)
    fitted_nS6 = others_nS6 + PRIOR_COUNT / max(len(sums_nS6) - 1, 1) * totals_n16
    weight, v, vv, e, ve, _ = np.moveaxis(fitted_nS6, -1, 0)
    weight = np.maximum(weight, FEW)
    spread = vv / weight - (v / weight) ** 2
    slope = np.divide(ve / weight - v * e / weight**2, spread, out=np.zeros_like(spread), where=spread > FEW)
    constant = (e - slope * v) / weight
    factors = (constant**2, 2 * constant * slope, slope**2, -2 * constant, -2 * slope, np.ones_like(slope))
    return (np.stack(factors, axis=-1) * sums_nS6).sum(axis=(1, 2))
