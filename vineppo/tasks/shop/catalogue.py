"""What a shop has, and what a customer wants of it; both are drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("shirt", "scarf", "blanket", "bag", "hat", "dress")
MATERIALS = ("cotton", "wool", "linen", "silk")
STYLES = ("plain", "striped", "dotted", "quilted")
COLOURS = ("red", "blue", "green", "black", "white")
SIZES = ("small", "medium", "large")
PRICES = range(5, 41)
CODES = "ABCDEFGHIJKLMNOP"
VOCABULARY = (*STYLES, *MATERIALS, *KINDS, *COLOURS, *SIZES)
NUM_LIKE = 2
"""Other items with the goal's title, of which each has something against it."""


class Item(NamedTuple):
    code: str
    style: str
    material: str
    kind: str
    price: int
    colours: tuple[str, ...]
    sizes: tuple[str, ...]

    @property
    def words(self) -> tuple[str, str, str]:
        return self.style, self.material, self.kind

    @property
    def title(self) -> str:
        return f"{self.code} {' '.join(self.words)} {self.price}"


class Goal(NamedTuple):
    style: str
    material: str
    kind: str
    colour: str
    size: str
    under: int
    """More than the price may be."""

    @property
    def words(self) -> tuple[str, str, str]:
        return self.style, self.material, self.kind

    def met_by(self, item: Item, colour: str | None, size: str | None) -> float:
        """The share of the six that a purchase meets."""
        met = [*(word in item.words for word in self.words), colour == self.colour, size == self.size]
        return (sum(met) + (item.price < self.under)) / 6

    def can_be(self, item: Item) -> bool:
        """Whether a customer who chooses well has all of it with this item."""
        return (
            self.words == item.words
            and self.colour in item.colours
            and self.size in item.sizes
            and item.price < self.under
        )

    def __str__(self) -> str:
        return f"a {' '.join(self.words)}, {self.colour}, {self.size}, under {self.under}"


class Shop(NamedTuple):
    items: tuple[Item, ...]
    goal: Goal


def draw_shop(num_items: int, rng: random.Random) -> Shop:
    """One item meets the goal. Some have its title and fail it, others share two words of it, the rest is anything."""
    style, material, kind, colour, size = map(rng.choice, (STYLES, MATERIALS, KINDS, COLOURS, SIZES))
    goal = Goal(style, material, kind, colour, size, under=rng.choice(PRICES[4:]))
    items = [_right_item(goal, rng), *(_like_item(goal, rng) for _ in range(NUM_LIKE))]
    others = _other_items(goal, rng)
    items += [next(others) for _ in range(num_items - len(items))]
    rng.shuffle(items)
    return Shop(tuple(item._replace(code=code) for code, item in zip(CODES, items, strict=False)), goal)


def _right_item(goal: Goal, rng: random.Random) -> Item:
    price = rng.choice([price for price in PRICES if price < goal.under])
    return Item("", *goal.words, price, _some(COLOURS, rng, having=goal.colour), _some(SIZES, rng, having=goal.size))


def _like_item(goal: Goal, rng: random.Random) -> Item:
    item = _right_item(goal, rng)
    against = rng.choice(("price", "colour", "size"))
    if against == "price":
        return item._replace(price=rng.choice([price for price in PRICES if price >= goal.under]))
    if against == "colour":
        return item._replace(colours=_some([colour for colour in COLOURS if colour != goal.colour], rng))
    return item._replace(sizes=_some([size for size in SIZES if size != goal.size], rng))


def _other_items(goal: Goal, rng: random.Random) -> Iterator[Item]:
    """Every second one shares two words with the goal."""
    while True:
        words = [rng.choice(STYLES), rng.choice(MATERIALS), rng.choice(KINDS)]
        near = list(goal.words)
        place = rng.randrange(len(near))
        near[place] = words[place]
        for style, material, kind in (near, words):
            if (style, material, kind) != goal.words:
                yield Item("", style, material, kind, rng.choice(PRICES), _some(COLOURS, rng), _some(SIZES, rng))


def _some(options: tuple[str, ...] | list[str], rng: random.Random, having: str | None = None) -> tuple[str, ...]:
    """Two of them, in their order."""
    chosen = set(rng.sample([option for option in options if option != having], 2 - (having is not None)))
    return tuple(option for option in options if option in chosen or option == having)
