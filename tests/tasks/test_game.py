"""Each game's rules against a second way of computing them, and players that know all there is to know."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError
from tasks.test_turns import once

from vineppo.tasks.episodes import play
from vineppo.tasks.game import Game, GameConfig
from vineppo.tasks.games.guess import feedback, row
from vineppo.transcript import Transcript, turns_of
from vineppo.types import Problem


def make_game(game: str, **knobs: Any) -> Game:
    return Game(GameConfig.model_validate({"game": game, "num_test": 40, "num_validation": 40, **knobs}))


def wins(task: Game, problem: Problem, player: Callable[[Sequence[str]], str]) -> bool:
    return task.grade(problem, play(task, problem, player)).verdict == "correct"


# guess


@pytest.mark.parametrize(
    ("code", "guess", "marks"),
    [
        ("abcd", "abcd", "===="),
        ("abcd", "dcba", "~~~~"),
        ("abcd", "eeee", "----"),
        ("abcd", "aaaa", "=---"),
        ("abca", "aaaa", "=--="),
        ("baaa", "abcc", "~~--"),
        ("abbb", "baac", "~~--"),
        ("cabb", "bbab", "~-~="),
    ],
)
def test_each_place_is_marked(code, guess, marks):
    assert feedback(code, guess) == marks


def test_a_letter_has_as_many_marks_as_the_code_has_of_it():
    for code, guess in product(map("".join, product("abc", repeat=4)), repeat=2):
        marks = feedback(code, guess)
        assert [mark == "=" for mark in marks] == [a == b for a, b in zip(code, guess, strict=True)]
        marked = Counter(letter for letter, mark in zip(guess, marks, strict=True) if mark != "-")
        assert marked == Counter(code) & Counter(guess)


def guesser(task: Game, problem: Problem) -> Callable[[Sequence[str]], str]:
    """Guesses what leaves fewest codes in the worst case, of all that agree with what it has read."""
    rules: Any = task.rules
    codes = list(map("".join, product(rules.alphabet, repeat=rules.num_places)))

    def guess(actions: Sequence[str]) -> str:
        replies = [task.reply(problem, Transcript.of(interleave(actions[:n]))) for n in range(1, len(actions) + 1)]
        left = codes
        for shown in [problem.prompt, *(reply for reply in replies if reply and "is no" not in reply)]:
            guess, marks = shown.strip()[::2], shown.strip()[1::2]
            left = [code for code in left if feedback(code, guess) == marks]
        return min(codes, key=lambda code: (worst(code, left), code not in left))

    return guess


def worst(guess: str, left: Sequence[str]) -> int:
    return max(Counter(feedback(code, guess) for code in left).values())


def interleave(actions: Sequence[str]) -> list[str]:
    """Turns with these actions; what the replies say does not matter."""
    return [turn for action in actions for turn in (action, "\n")][:-1]


@pytest.mark.parametrize("num_letters", [2, 3])
def test_a_perfect_guesser_finds_every_code(num_letters):
    task = make_game("guess", guess={"num_letters": num_letters, "num_places": 3, "num_tries": 5})
    codes = list(map("".join, product("abc"[:num_letters], repeat=3)))
    for code, opening in product(codes, repeat=2):
        problem = Problem("p", f"{row(code, opening)}\n", code, meta={"opening": opening})
        assert wins(task, problem, guesser(task, problem))


def test_a_perfect_guesser_wins_even_where_one_guess_was_wasted():
    task, rng = make_game("guess"), random.Random(0)
    for problem in task.split("test"):
        perfect = guesser(task, problem)
        for wasted in (problem.prompt.strip()[::2], "".join(rng.choices("abcde", k=3)), "no guess"):
            assert wins(task, problem, once(wasted, 0, perfect))


def test_codes_that_cannot_be_looked_through_are_refused():
    with pytest.raises(ValidationError, match="at most 10000"):
        make_game("guess", guess={"num_letters": 26, "num_places": 8})


# keydoor


def distances(rows: str, target: str, closed: str) -> dict[tuple[int, int], int]:
    """Of every cell from the target, by relaxing until nothing changes; walls and `closed` are not walked through."""
    cells = {(x, y): cell for y, row in enumerate(rows.split("\n")) for x, cell in enumerate(row)}
    found = {place: 0 if cell == target else 99 for place, cell in cells.items() if cell not in ("#", closed)}
    for _ in cells:
        for x, y in found:
            around = [found.get(place, 99) for place in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1))]
            found[x, y] = min(found[x, y], min(around) + 1)
    return found


def walker(task: Game, problem: Problem) -> Callable[[Sequence[str]], str]:
    """Knows the maze, reads where it is, and always goes nearer."""
    rows = problem.meta["maze"]
    to_key, to_door = distances(rows, "K", closed="D"), distances(rows, "D", closed="")

    def walk(actions: Sequence[str]) -> str:
        shown = task.reply(problem, Transcript.of(interleave(actions))) if actions else problem.prompt
        assert shown is not None
        (column, row), with_key = shown.splitlines()[-1][:2], shown.endswith(" key\n")
        x, y = ord(column) - ord("a"), int(row) - 1
        field = to_door if with_key else to_key
        moves = {"n": (x, y - 1), "e": (x + 1, y), "s": (x, y + 1), "w": (x - 1, y)}
        return min(moves, key=lambda move: field.get(moves[move], 99))

    return walk


@pytest.mark.parametrize("size", [3, 5, 8])
def test_who_walks_the_shortest_way_wins_even_after_any_one_mistake(size):
    task = make_game("keydoor", keydoor={"size": size, "max_moves": 2 * size + 8})
    for problem in task.split("test"):
        perfect = walker(task, problem)
        straight = play(task, problem, perfect)
        assert " ".join(straight.actions) == problem.answer or len(straight.actions) == len(problem.answer.split())
        for place, mistake in product(range(0, len(straight.actions), 3), ("n", "e", "s", "w", "jump")):
            assert wins(task, problem, once(mistake, place, perfect))


def test_the_door_is_locked_to_who_has_no_key():
    maze = "@DK\n...\n###"
    problem = Problem("p", "key c1 door b1\na1 #D.#\n", "s e e n w", meta={"maze": maze})
    task = make_game("keydoor", keydoor={"size": 3})
    said = play(task, problem, lambda actions: ["e", "n", "s", "s", "e", "e", "n", "w"][len(actions)])
    assert str(said) == (
        "e is locked\na1 #D.#\nn is blocked\na1 #D.#\ns\na2 ..##\ns is blocked\na2 ..##\n"
        "e\nb2 D.#.\ne\nc2 K##.\nn\nc1 ##.D key\nw"
    )
    assert task.grade(problem, said).reward == 1


# both


def test_a_faster_win_earns_more_where_the_recipe_says_so():
    task = make_game("keydoor", speed_bonus=0.1)
    for problem in task.split("test")[:10]:
        slow = Transcript.of(["rest", " is no move\n", *turns_of(problem.solution)])
        fast = task.grade(problem, problem.solution).reward
        assert 1 < task.grade(problem, slow).reward < fast < 1.1
        assert fast - task.grade(problem, slow).reward == pytest.approx(0.1 / task.rules.max_moves)
