"""A language of sums: short responses, most tokens decide, and all that can be written can be enumerated.

The policy works on a number that begins at 1, one operation per token: "+" adds 1, "*" doubles, a line break leaves it.
END is right if the number then is the one in the prompt. After six tokens without it the response is cut off and wrong.
So tokens differ in what they decide: a line break only takes time, "+" and "*" are forks, and once the number is too
large nothing matters any more. The logits of the next token depend on the prompt and the last token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vineppo.exact.world import END


class Node(NamedTuple):
    target: int
    number: int  # all that are too large are one
    last: str  # END at the start


@dataclass(frozen=True)
class Language:
    name: str = "language"
    prompts: str = "346"
    actions: str = "+*\n" + END
    budget: int = 6

    def policy(self) -> np.ndarray:  # [S, A] logits
        """It has learnt something: it solves "3" in half of its tries, "4" in a third, "6" in a fifth.

        Gradient ascent on the exact gradient led there from arbitrary logits; then they were rounded.
        """
        return np.array(
            [  #  +     *     \n    END
                [-0.5, -0.5, -0.5, 1.5],  # "3", after +
                [2.0, -1.0, -0.5, 0.0],  # after *
                [0.0, -0.5, 0.5, 0.0],  # after a line break
                [-1.0, 1.5, -0.5, -3.0],  # at the start
                [0.0, 1.5, -1.0, -0.5],  # "4"
                [-0.5, -0.5, 0.0, 1.5],
                [-0.5, 0.5, 0.0, -0.5],
                [1.0, 0.0, -0.5, -2.5],
                [0.0, 3.0, -1.0, -1.0],  # "6"
                [1.5, -2.0, -1.0, 1.5],
                [-0.5, 0.5, 0.0, -0.5],
                [-0.5, 2.0, -1.0, -2.5],
            ]
        )

    def start(self, prompt: str) -> Node:
        return Node(int(prompt), 1, END)

    def row(self, node: Node) -> int:
        return self.prompts.index(str(node.target)) * len(self.actions) + self.actions.index(node.last)

    def move(self, node: Node, action: str) -> Node:
        number = node.number + 1 if action == "+" else node.number * 2 if action == "*" else node.number
        return Node(node.target, min(number, node.target + 1), action)

    def is_right(self, node: Node) -> bool:
        return node.number == node.target

    def pay(self, node: Node) -> float:
        return 0.0
