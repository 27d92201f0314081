"""The example episodes of docs/tasks.md: played, they come out word for word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tasks.test_web import PROBLEM

from vineppo.tasks.episodes import play
from vineppo.tasks.game import Game, GameConfig
from vineppo.tasks.web import Web, WebConfig
from vineppo.types import Problem

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "tasks.md").read_text()


def episode_of(game: str) -> str:
    return re.findall(r"```text\n(.*?)\n```", GUIDE[GUIDE.index(f"`{game}`: a ") :], re.DOTALL)[0]


def played(task: Any, problem: Problem, actions: str) -> str:
    remaining = iter(actions.split(","))
    said = play(task, problem, lambda _: next(remaining))
    assert task.grade(problem, said).reward == 1
    return problem.prompt + said


def test_a_code_is_guessed():
    problem = Problem("p", "c-b~a~\n", "aba", meta={"opening": "cba"})
    assert played(Game(GameConfig(game="guess")), problem, "dab,abb,aba") == episode_of("guess")


def test_a_door_is_opened():
    problem = Problem("p", "key c1 door b1\na1 #D.#\n", "s e e n w", meta={"maze": "@DK\n...\n###"})
    assert played(Game(GameConfig(game="keydoor")), problem, "e,s,e,e,n,w") == episode_of("keydoor")


def test_a_shirt_is_bought():
    page = GUIDE[GUIDE.index("## A shop on the web") :]
    (episode,) = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    actions = "search[cotton shirt striped],click[B],click[C],click[red],click[large],buy"
    assert played(Web(WebConfig()), PROBLEM, actions) == episode
