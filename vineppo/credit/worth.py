"""Whether a vine is worth its tokens: the number of vines of a state, by what earlier iterations found.

More responses for more tokens lower the variance of a batch's gradient, too: from W for T tokens, c further tokens take
off c W / T. So a vine of c tokens is worth sampling where it takes off more.

What it improves is E_j. Its error enters the gradient with segment j-1, whose squared score is w_{j-1}, and through
smoothing with the segments before:

    weight_j = w_{j-1} + l_{j-1}^2 weight_{j-1}

The m responses that run through s_j share it. By themselves they know V(s_j) from m values E_{j+1}, each of squared
error D; with k rewards of variance v beside them the squared error is 1 / (m/D + k/v), and vine k + 1 takes off

    m^2 weight_j [1 / (m/D + k/v) - 1 / (m/D + (k+1)/v)]

All of this is known before s_j or counts what runs through it; what anybody earned there decides nothing.
"""

from __future__ import annotations

from vineppo.credit.pooling import Node
from vineppo.credit.smoothing import Gains


def weight_of(node: Node, gains: Gains) -> float:
    """Of the state above it must be known already. One that is not measured passes all of an error on."""
    above = node.above
    if above is None:
        return 0.0
    num = 0 if above.is_skipped else len(above.rollouts) - 1 + len(above.passing) + len(above.vines)
    return node.score + gains.after(above.depth, num) ** 2 * above.weight


def num_worthwhile(gains: Gains, node: Node, most: int) -> int:
    """Vines to sample at the state, at most so many with those that run through it."""
    sums, noise = gains.at(node.depth), gains.noise(node.depth)
    if noise is None or not gains.num_tokens:
        return 0
    price = gains.total.square / gains.num_tokens * sums.tokens_left / sums.count
    return count_worthwhile(node.weight, price, noise, len(node.rollouts), len(node.passing), most)


def count_worthwhile(
    weight: float, price: float, noise: tuple[float, float], num_rollouts: float, num_passing: float, most: int
) -> int:
    """`noise` is v and D, `price` c W / T; numbers may be expected ones."""
    variance, error = noise
    if not variance or not error:
        return 0

    def shared_error(num_vines: float) -> float:
        return num_rollouts**2 / (num_rollouts / error + num_vines / variance)

    num = 0
    while num_passing + num + 1 <= most:
        before, after = (shared_error(num_passing + num + more) for more in (0, 1))
        if weight * (before - after) <= price:
            break
        num += 1
    return num
