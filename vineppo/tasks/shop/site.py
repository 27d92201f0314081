"""The shop's pages, and where an action leads. Nothing is remembered but what the actions say.

home       search[words]
results    search[words]  click[A]  back           items that have one of the words, those with most of them first
item       click[red]  click[large]  buy  back     an option is there until another of its kind is chosen
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from vineppo.tasks.shop.catalogue import COLOURS, SIZES, Item, Shop

ACTION = re.compile(r"(search|click)\[([^\[\]]*)\]|(back)|(buy)")
NUM_RESULTS = 3
NOTHING_FOUND, NOT_HERE, HOME = "nothing found", " is not possible here\n", "search"


class Visit(NamedTuple):
    """Where a customer is: at home without results, at an item where there is one, else at the results."""

    results: tuple[Item, ...] | None = None
    item: Item | None = None
    colour: str | None = None
    size: str | None = None
    bought: bool = False

    @property
    def page(self) -> str:
        if self.item and (self.colour or self.size):
            return " ".join(filter(None, (self.item.code, self.colour, self.size)))
        if self.item:
            return "\n".join((self.item.title, " ".join(self.item.colours), " ".join(self.item.sizes)))
        if self.results is not None:
            return "\n".join(item.title for item in self.results) or NOTHING_FOUND
        return HOME


def act(shop: Shop, visit: Visit, action: str) -> Visit | None:
    """Where it leads; None where it is not possible, or no action at all."""
    match = ACTION.fullmatch(action.strip())
    if match is None:
        return None
    verb, words = (match[1] or match[0]), match[2]
    if verb == "search":
        return None if visit.item else Visit(find(shop, words.split()))
    if verb == "back":
        return Visit(visit.results) if visit.item else Visit() if visit.results is not None else None
    if verb == "buy":
        return visit._replace(bought=True) if visit.item else None
    if visit.item:
        return choose(visit, visit.item, words)
    return next((visit._replace(item=item) for item in visit.results or () if item.code == words), None)


def choose(visit: Visit, item: Item, option: str) -> Visit | None:
    if option in item.colours:
        return visit._replace(colour=option)
    return visit._replace(size=option) if option in item.sizes else None


def find(shop: Shop, words: Sequence[str]) -> tuple[Item, ...]:
    wanted = set(words)
    found = [item for item in shop.items if wanted & set(item.words)]
    return tuple(sorted(found, key=lambda item: -len(wanted & set(item.words)))[:NUM_RESULTS])


def visit_of(shop: Shop, actions: Sequence[str]) -> tuple[Visit, str]:
    """(where all the actions lead, what the last one is answered with). After a purchase nothing counts."""
    visit, reply = Visit(), ""
    for action in actions:
        if visit.bought:
            break
        after = act(shop, visit, action)
        reply = NOT_HERE if after is None else f"\n{after.page}\n"
        visit = after or visit
    return visit, reply


def possible_actions(shop: Shop, visit: Visit) -> list[str]:
    """All but searches, of which some that find little."""
    if visit.item:
        return [*(f"click[{option}]" for option in (*visit.item.colours, *visit.item.sizes)), "buy", "back"]
    searches = [f"search[{word}]" for word in (*shop.goal.words, *COLOURS, *SIZES)]
    if visit.results is None:
        return searches
    return [*(f"click[{item.code}]" for item in visit.results), "back"]
