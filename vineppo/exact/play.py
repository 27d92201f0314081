"""A world as the program meets it: a task, an engine, an environment."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from vineppo.environment import Environment
from vineppo.exact.table_engine import TableEngine
from vineppo.exact.world import END, World
from vineppo.grading import Grader, GradingConfig
from vineppo.segments import cut_lines
from vineppo.types import Grade, Problem, SamplingParams

Cuts = Callable[[str], list[int]]
"""A rule of where a response may be cut."""


def make_environment(world: World, *, cuts: Cuts = cut_lines, num_alternatives: int = 0) -> Environment:
    """Samples the world's policy."""
    task = WorldTask(world, cuts)
    return Environment(
        engine=TableEngine(world),
        task=task,
        grader=Grader(task, GradingConfig()),
        tokenizer=world.tokenizer,
        params=SamplingParams(num_alternatives=num_alternatives),
        max_prompt_tokens=1,
    )


class WorldTask:
    """Respond as the world's rules call right."""

    isolate = False

    def __init__(self, world: World, cuts: Cuts):
        self.world, self.cuts = world, cuts

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        """Every prompt equally often, so a batch has no luck of prompts in it."""
        prompts = self.world.prompts
        return [Problem(f"{self.world.name}/{i}", prompts[i % len(prompts)], "right") for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(len(self.world.prompts), seed=0)

    def grade(self, problem: Problem, response: str) -> Grade:
        world, text = self.world, problem.prompt + response
        node = world.node(text)
        verdict = "correct" if world.rewards_N[node] > world.pay_N[node] else "wrong"
        earned = world.trace(text + END).earned
        if not world.pay_N.any():
            return Grade(earned[-1], verdict)
        ends = [*self.segment(response), len(response) + 1]
        return Grade.of_segments([earned[b] - earned[a] for a, b in pairwise([0, *ends])], verdict)

    def answer(self, response: str) -> str:
        """What is right depends on the prompt, which is not known here; equal responses are equal answers."""
        return response

    def segment(self, response: str) -> list[int]:
        return self.cuts(response)
