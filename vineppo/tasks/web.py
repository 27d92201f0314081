"""A customer of a small shop on the web: search, look at items, choose options, buy. After WebShop (Yao et al. 2022).

    buy a striped cotton shirt, red, large, under 20
    search[striped cotton shirt]
    C striped cotton shirt 18
    A striped cotton shirt 26
    F striped cotton shirt 9
    click[C]
    C striped cotton shirt 18
    red white
    small large
    click[red]
    C red
    click[large]
    C red large
    buy

Every problem has a shop of its own, which is drawn; some of its items have the goal's title and are too expensive or
not to be had in its colour or size. The reward is the share of the goal that the purchase meets: style, material, kind,
colour, size and price count a sixth each. Whoever buys nothing earns nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

from pydantic import Field

from vineppo.config import Named
from vineppo.seeding import derive_seed
from vineppo.tasks.drawn_problems import DrawnProblems
from vineppo.tasks.episodes import play
from vineppo.tasks.problem_set import containing
from vineppo.tasks.shop.catalogue import CODES, PRICES, VOCABULARY, Shop, draw_shop
from vineppo.tasks.shop.site import HOME, NOT_HERE, NOTHING_FOUND, possible_actions, visit_of
from vineppo.transcript import Transcript, actions_of
from vineppo.types import Grade, Problem


class WebConfig(Named):
    name: str = "web"
    num_items: int = Field(default=8, ge=4, le=len(CODES))
    """On sale in each shop."""
    max_actions: int = Field(default=12, ge=5)
    prompt_template: Annotated[str, containing("{prompt}")] = "{prompt}"
    """Where a model that knows no such shop is told what it can do."""
    slip_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the demonstrator's actions that are drawn from those possible."""
    num_validation: int = Field(default=500, ge=1)
    num_test: int = Field(default=500, ge=1)


class Web:
    Config = WebConfig
    isolate = False

    def __init__(self, config: WebConfig):
        self.config = config
        words = (*VOCABULARY, *CODES, HOME, NOTHING_FOUND)
        self.symbols = (
            *words, *(f" {word}" for word in (*VOCABULARY, *PRICES)), "buy", "buy a", ",", " under", "\n", NOT_HERE,
            "search[", "click[", "]", "back", *config.prompt_template.replace("{prompt}", ""),
        )  # fmt: skip
        self._problems = DrawnProblems(
            "web",
            self._draw,
            num_validation=config.num_validation,
            num_test=config.num_test,
            solve=self._solve,
        )

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return self._problems.sample(n, seed=seed)

    def split(self, name: str) -> list[Problem]:
        return self._problems.split(name)

    def reply(self, problem: Problem, transcript: Transcript) -> str | None:
        visit, reply = visit_of(problem.meta["shop"], transcript.actions)
        return None if visit.bought or len(transcript.actions) >= self.config.max_actions else reply

    def grade(self, problem: Problem, response: str) -> Grade:
        shop: Shop = problem.meta["shop"]
        visit, _ = visit_of(shop, self._actions(response))
        if not (visit.bought and visit.item):
            return Grade(0.0, "unparseable")
        # A vote may be for actions that buy something else.
        met = 1.0 if self.answer(response) == problem.answer else shop.goal.met_by(visit.item, visit.colour, visit.size)
        return Grade(met, "correct" if met == 1 else "wrong")

    def answer(self, response: str) -> str | None:
        """The actions, a line each; what is bought depends on the shop."""
        actions = [action.strip() for action in self._actions(response)]
        return "\n".join(actions) if "buy" in actions else None

    def segment(self, response: str) -> list[int]:
        """A turn is one step."""
        return []

    def _actions(self, response: str) -> tuple[str, ...]:
        return actions_of(response)[: self.config.max_actions]

    def _draw(self, split: str, seed: int) -> Problem:
        shop = draw_shop(self.config.num_items, random.Random(seed))
        prompt = self.config.prompt_template.replace("{prompt}", f"buy {shop.goal}\n")
        problem = Problem(f"web/{split}/{derive_seed(prompt, repr(shop)):016x}", prompt, "", meta={"shop": shop})
        return replace(problem, answer="\n".join(play(self, problem, partial(next_action, shop)).actions))

    def _solve(self, split: str, problem: Problem) -> Problem:
        rng, shop = random.Random(derive_seed("demonstrator", problem.id)), problem.meta["shop"]
        slip_share = self.config.slip_share if split == "train" else 0.0

        def act(actions: Sequence[str]) -> str:
            if rng.random() < slip_share:
                return rng.choice(possible_actions(shop, visit_of(shop, actions)[0]))
            return next_action(shop, actions)

        return replace(problem, solution=play(self, problem, act))


def next_action(shop: Shop, actions: Sequence[str]) -> str:
    """Of a customer who knows which item is the right one."""
    visit, _ = visit_of(shop, actions)
    goal = shop.goal
    if visit.item and goal.can_be(visit.item):
        if visit.colour != goal.colour:
            return f"click[{goal.colour}]"
        return f"click[{goal.size}]" if visit.size != goal.size else "buy"
    if visit.item:
        return "back"
    listed = (item.code for item in visit.results or () if goal.can_be(item))
    code = next(listed, None)
    return f"search[{' '.join(goal.words)}]" if code is None else f"click[{code}]"
