"""Chains of 8 to 32 reasoning steps: every line is a segment, some lines decide, and errors may be repaired.

A line is a letter and a line break; END comes behind the last letter. In a line that decides, "+" is right and "-"
wrong; "." is a line that is certain. A chain is *good* as long as all went right, and only good chains have reward 1.
Where nothing can be repaired, a wrong step is fatal, and the policy goes on as before. Elsewhere the policy knows that
the chain is broken, and repairs it with "+" as often as its table says. In a `deadly` world a second wrong step in a
row is the last that matters: dead chains stay so, and the policy goes on as if they were merely broken.
In a world that `pays`, every line after which the chain is good earns something at once, as process rewards.
The logits depend on prompt, line and, where the policy knows of it, on whether the chain is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from vineppo.exact.world import END

ACTIONS = "+-.\n" + END


class Node(NamedTuple):
    prompt: str
    position: int
    condition: Literal["good", "broken", "dead"]


@dataclass(frozen=True)
class Chain:
    name: str
    num_lines: int
    decisions: Sequence[int]
    """The lines that decide, from 0."""
    keep: tuple[float, float]
    """The probability of "+" while the chain is good: of an easy prompt and of a hard one."""
    repair: float = 0.0
    """The probability of "+" while it is broken; 0: errors are fatal."""
    deadly: bool = False
    pays: float = 0.0
    """Process reward of every line after which the chain is good."""
    prompts: str = "ab"
    actions: str = ACTIONS

    @property
    def budget(self) -> int:
        return 2 * self.num_lines

    def policy(self) -> np.ndarray:  # [S, A] logits
        decides = [
            [p, 1 - p, 0.0, 0.0, 0.0] for keep in self.keep for _ in self.decisions for p in (keep, self.repair or keep)
        ]
        with np.errstate(divide="ignore"):
            return np.log(np.array([*np.eye(len(ACTIONS))[2:], *decides]))

    def start(self, prompt: str) -> Node:
        return Node(prompt, 0, "good")

    def row(self, node: Node) -> int:
        line, is_letter = node.position // 2, node.position % 2 == 0
        if not is_letter:
            return 2 if node.position == self.budget - 1 else 1
        if line not in self.decisions:
            return 0
        number = self.prompts.index(node.prompt) * len(self.decisions) + self.decisions.index(line)
        return 3 + 2 * number + (node.condition != "good" and self.repair > 0)

    def move(self, node: Node, action: str) -> Node:
        return Node(node.prompt, node.position + 1, self.condition_after(node.condition, action))

    def condition_after(self, condition: Literal["good", "broken", "dead"], action: str):
        if action == "-":
            return "broken" if condition == "good" or not self.deadly else "dead"
        if action == "+" and condition == "broken" and self.repair > 0:
            return "good"
        return condition

    def is_right(self, node: Node) -> bool:
        return node.condition == "good"

    def pay(self, node: Node) -> float:
        return self.pays * (node.condition == "good")


CHAINS = (
    Chain("fatal-8", 8, range(8), (0.93, 0.88)),
    Chain("fatal-forks-32", 32, range(3, 32, 4), (0.93, 0.88)),
    Chain("fatal-late-32", 32, range(24, 32), (0.93, 0.88)),
    Chain("repair-8", 8, range(8), (0.85, 0.75), repair=0.3),
    Chain("repair-12", 12, range(2, 12), (0.88, 0.82), repair=0.3),
    Chain("repair-forks-32", 32, range(3, 32, 4), (0.85, 0.75), repair=0.3),
    Chain("repair-early-16", 16, range(8), (0.85, 0.75), repair=0.3),
    Chain("repair-late-16", 16, range(8, 16), (0.85, 0.75), repair=0.3),
    Chain("dead-16", 16, range(8), (0.85, 0.75), repair=0.5, deadly=True),
    Chain("paid-8", 8, range(8), (0.82, 0.72), repair=0.3, pays=0.02),
)
