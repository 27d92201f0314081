"""The shop: pages, purchases and their rewards, and a customer who reads nothing but the pages."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tasks.test_turns import once

from vineppo.tasks.episodes import play
from vineppo.tasks.shop.catalogue import Goal, Item, Shop, draw_shop
from vineppo.tasks.web import Web, WebConfig
from vineppo.transcript import Transcript
from vineppo.types import Problem

SHOP = Shop(
    (
        Item("A", "striped", "cotton", "shirt", 26, ("red", "blue"), ("small", "large")),
        Item("B", "plain", "wool", "hat", 9, ("red", "blue"), ("small", "large")),
        Item("C", "striped", "cotton", "shirt", 18, ("red", "white"), ("small", "large")),
        Item("D", "plain", "cotton", "shirt", 20, ("red", "green"), ("small", "medium")),
    ),
    Goal("striped", "cotton", "shirt", "red", "large", under=20),
)
PROBLEM = Problem("p", "buy a striped cotton shirt, red, large, under 20\n", "buy", meta={"shop": SHOP})


def make_web(**knobs: Any) -> Web:
    return Web(WebConfig(**{"num_test": 60, "num_validation": 60, **knobs}))


def visit(*actions: str) -> Transcript:
    remaining = iter(actions)
    return play(make_web(), PROBLEM, lambda _: next(remaining))


def customer(task: Web, problem: Problem) -> Callable[[Sequence[str]], str]:
    """Searches the three words of the goal and looks into each result that has them and is cheap enough."""
    *words, colour, size, under = re.findall(r"\w+", problem.prompt.removeprefix("buy a ").replace(" under", ""))
    title = " ".join(words)

    def suits(line: str) -> bool:
        return title in line and int(line.split()[-1]) < int(under)

    def act(actions: Sequence[str]) -> str:
        turns = [turn for action in actions for turn in (action, "\n")][:-1]
        replies = [str(task.reply(problem, Transcript.of(turns[:n]))) for n in range(1, len(turns) + 1, 2)]
        pages = [reply.strip().split("\n") for reply in replies if not reply.startswith(" is not")] or [["search"]]
        looked_into = {page[0][0] for page in pages if len(page) == 3 and not page[1][-1].isdigit()}
        page = pages[-1]
        if len(page) == 1 and page[0].split()[0] in looked_into:  # options are chosen
            return next((f"click[{option}]" for option in (colour, size) if option not in page[0]), "buy")
        if len(page) == 3 and not page[1][-1].isdigit():  # an item
            return f"click[{colour}]" if suits(page[0]) and colour in page[1] and size in page[2] else "back"
        listed = [line[0] for line in page if line[-1].isdigit() and suits(line)]
        return next((f"click[{code}]" for code in listed if code not in looked_into), f"search[{title}]")

    return act


def test_a_visit_page_by_page():
    said = visit(
        "search[red]", "search[cotton shirt striped]", "click[B]", "click[A]", "click[red]", "back", "click[C]",
        "click[white]", "click[large]", "click[red]", "buy",
    )  # fmt: skip
    results = "\nA striped cotton shirt 26\nC striped cotton shirt 18\nD plain cotton shirt 20\n"
    assert said.replies == (
        "\nnothing found\n", results, " is not possible here\n", "\nA striped cotton shirt 26\nred blue\nsmall large\n",
        "\nA red\n", results, "\nC striped cotton shirt 18\nred white\nsmall large\n", "\nC white\n",
        "\nC white large\n", "\nC red large\n",
    )  # fmt: skip
    assert make_web().grade(PROBLEM, said).reward == 1


@pytest.mark.parametrize(
    ("actions", "met"),
    [
        (["search[shirt]", "click[C]", "click[red]", "click[large]", "buy"], 6),
        (["search[shirt]", "click[C]", "click[red]", "buy"], 5),
        (["search[shirt]", "click[C]", "buy"], 4),
        (["search[shirt]", "click[A]", "click[red]", "click[large]", "buy"], 5),
        (["search[shirt]", "click[D]", "click[red]", "buy"], 3),  # 20 is not under 20
        (["search[hat]", "click[B]", "click[red]", "click[large]", "buy"], 3),
        (["search[hat]", "click[B]", "click[blue]", "buy"], 1),
    ],
)
def test_each_of_six_counts_a_sixth(actions, met):
    grade = make_web().grade(PROBLEM, visit(*actions))
    assert grade.reward == pytest.approx(met / 6)
    assert grade.verdict == ("correct" if met == 6 else "wrong")


@pytest.mark.parametrize(
    "action",
    ["buy", "back", "click[A]", "click[red]", "Search[shirt]", "search[shirt", "search[[shirt]]", "buy buy", "BUY"],
)
def test_at_home_there_is_nothing_but_the_search(action):
    task = make_web()
    assert task.reply(PROBLEM, Transcript.of([action])) == " is not possible here\n"
    assert task.grade(PROBLEM, action).reward == 0


def test_every_shop_has_one_item_that_meets_the_goal_and_some_that_look_like_it():
    for seed in range(300):
        shop = draw_shop(8, random.Random(seed))
        good = [item for item in shop.items if shop.goal.can_be(item)]
        alike = [item for item in shop.items if item.words == shop.goal.words]
        assert (len(good), len(alike), len(shop.items)) == (1, 3, 8)
        assert shop.goal.met_by(good[0], shop.goal.colour, shop.goal.size) == 1
        assert len({item.code for item in shop.items}) == 8


def test_a_customer_who_reads_always_buys_right_even_after_a_mistake():
    task, rng = make_web(), random.Random(0)
    for problem in task.split("test"):
        reader = customer(task, problem)
        straight = play(task, problem, reader)
        assert task.grade(problem, straight).verdict == "correct"
        listed = rng.choice([line[0] for line in straight.replies[0].strip().split("\n")])
        for mistake in ("search[hat]", "sing", "buy", "back", f"click[{listed}]"):
            for place in (0, 1):
                said = play(task, problem, once(mistake, place, reader))
                assert task.grade(problem, said).verdict == "correct"
