"""A key is fetched and a door opened with it, in a maze of which the player sees the four cells around it.

    key b4 door d4          columns are letters from the west, rows are numbers from the north
    b2 .#.#                 where the player is, and what is n, e, s and w of it: . free, # wall, K key, D door
    s
    b3 ..K.
    s
    b4 ..## key             the key is taken by walking onto it

The door lets nobody in who has no key. A move that cannot be made, or cannot be read, is answered and costs a move.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from vineppo.config import Config
from vineppo.tasks.games.rules import Played, Start
from vineppo.types import Problem

COLUMNS = "abcdefghi"
STEPS = {"n": (0, -1), "e": (1, 0), "s": (0, 1), "w": (-1, 0)}
WALL, FREE, KEY, DOOR, PLAYER = "#.KD@"
WALKED, UNREADABLE, BLOCKED, LOCKED, WITH_KEY = "\n", " is no move\n", " is blocked\n", " is locked\n", " key"

Cell = tuple[int, int]


class KeyDoorConfig(Config):
    size: int = Field(default=5, ge=3, le=len(COLUMNS))
    """Cells of a side."""
    wall_share: float = Field(default=0.25, ge=0, le=0.5)
    max_moves: int = Field(default=14, ge=6)
    """A problem can be solved with two moves less, so that any one mistake can be repaired."""


class State(NamedTuple):
    cell: Cell
    has_key: bool


class Maze(NamedTuple):
    free: frozenset[Cell]
    player: Cell
    key: Cell
    door: Cell

    @classmethod
    def read(cls, rows: str) -> Maze:
        cells = {(x, y): cell for y, row in enumerate(rows.split("\n")) for x, cell in enumerate(row)}
        places = {cell: place for place, cell in cells.items()}
        free = frozenset(place for place, cell in cells.items() if cell != WALL)
        return cls(free, places[PLAYER], places[KEY], places[DOOR])

    def shown(self, cell: Cell, state: State) -> str:
        if cell not in self.free:
            return WALL
        if cell == self.door:
            return DOOR
        return KEY if cell == self.key and not state.has_key else FREE


class KeyDoor:
    def __init__(self, config: KeyDoorConfig):
        self.size, self.wall_share, self.max_moves = config.size, config.wall_share, config.max_moves
        numbers = (str(row + 1) for row in range(self.size))
        self.symbols = (
            *COLUMNS[: self.size], *numbers, *STEPS, WALL, FREE, KEY, DOOR, "key ", " door ", " ",
            WALKED, UNREADABLE, BLOCKED, LOCKED, WITH_KEY,
        )  # fmt: skip

    def start(self, rng: random.Random) -> Start:
        """Mazes are drawn until one can be solved in time."""
        while True:
            cells = [WALL if rng.random() < self.wall_share else FREE for _ in range(self.size**2)]
            for mark, place in zip((PLAYER, KEY, DOOR), rng.sample(range(self.size**2), 3), strict=True):
                cells[place] = mark
            rows = "\n".join("".join(cells[i : i + self.size]) for i in range(0, self.size**2, self.size))
            maze = Maze.read(rows)
            way = shortest_way(maze, State(maze.player, has_key=False))
            if way and len(way) <= self.max_moves - 2:
                prompt = f"key {name(maze.key)} door {name(maze.door)}\n{look(maze, State(maze.player, has_key=False))}"
                return Start(prompt, " ".join(way), {"maze": rows})

    def play(self, problem: Problem, actions: Sequence[str]) -> Played:
        maze = Maze.read(problem.meta["maze"])
        state = self._walk(maze, actions[:-1])
        after, hindrance = step(maze, state, actions[-1])
        return Played(f"{hindrance or WALKED}{look(maze, after)}", won=after.cell == maze.door)

    def advise(self, problem: Problem, actions: Sequence[str], rng: random.Random) -> str:
        maze = Maze.read(problem.meta["maze"])
        return shortest_way(maze, self._walk(maze, actions))[0]

    def blunder(self, problem: Problem, actions: Sequence[str], rng: random.Random) -> str:
        maze = Maze.read(problem.meta["maze"])
        state = self._walk(maze, actions)
        return rng.choice([move for move in STEPS if step(maze, state, move)[1] is None])

    def answer(self, actions: Sequence[str]) -> str | None:
        """The moves."""
        moves = [action.strip() for action in actions]
        return " ".join(moves) if any(move in STEPS for move in moves) else None

    def _walk(self, maze: Maze, actions: Sequence[str]) -> State:
        state = State(maze.player, has_key=False)
        for action in actions:
            state, _ = step(maze, state, action)
        return state


def step(maze: Maze, state: State, action: str) -> tuple[State, str | None]:
    """Where a move leads, and what hinders it."""
    move = action.strip()
    if move not in STEPS:
        return state, UNREADABLE
    (x, y), (dx, dy) = state.cell, STEPS[move]
    cell = (x + dx, y + dy)
    if cell not in maze.free:
        return state, BLOCKED
    if cell == maze.door and not state.has_key:
        return state, LOCKED
    return State(cell, state.has_key or cell == maze.key), None


def shortest_way(maze: Maze, start: State) -> list[str]:
    """Moves to the door, by way of the key; none where there is no way. Of equally short ways always the same one."""
    ways: dict[State, list[str]] = {start: []}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        if state.cell == maze.door:
            return ways[state]
        for move in STEPS:
            after, _ = step(maze, state, move)
            if after not in ways:
                ways[after] = [*ways[state], move]
                waiting.append(after)
    return []


def look(maze: Maze, state: State) -> str:
    x, y = state.cell
    around = "".join(maze.shown((x + dx, y + dy), state) for dx, dy in STEPS.values())
    return f"{name(state.cell)} {around}{WITH_KEY if state.has_key else ''}\n"


def name(cell: Cell) -> str:
    return f"{COLUMNS[cell[0]]}{cell[1] + 1}"
