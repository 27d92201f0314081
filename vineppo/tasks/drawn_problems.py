"""Problems that are drawn, as many as are wanted: what the tasks without data have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from operator import attrgetter
from typing import Any

from vineppo.seeding import derive_seed
from vineppo.types import Problem, UserError

BUCKETS = {"test": (0,), "validation": (1,), "train": tuple(range(2, 10))}
"""Tenths of all problems."""


class DrawnProblems:
    """`sample` and `split` of a task whose `sample_one(split, seed)` gives a problem for any seed.

    A problem's own content, by default its prompt, decides which split it is in, so none is in two.
    """

    def __init__(
        self,
        name: str,
        sample_one: Callable[[str, int], Problem],
        *,
        num_validation: int,
        num_test: int,
        content: Callable[[Problem], str] = attrgetter("prompt"),
        solve: Callable[[str, Problem], Problem] | None = None,
    ):
        """`solve(split, problem)` adds to the problems that are chosen what takes long."""
        self.name, self._sample_one, self._content, self._solve = name, sample_one, content, solve
        self._splits: dict[str, list[Problem]] = {}
        self._sizes = {"validation": num_validation, "test": num_test}

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return list(islice(self._problems("train", seed), n))

    def split(self, name: str) -> list[Problem]:
        if name == "train":
            raise UserError(f"{self.name} has unlimited training problems; say how many, e.g. sft.num_problems=20000")
        if name not in self._sizes:
            raise UserError(f"{self.name} has no split {name!r}; it has validation and test")
        if name not in self._splits:
            self._splits[name] = list(islice(self._problems(name, 0), self._sizes[name]))
        return self._splits[name]

    def _problems(self, split: str, seed: int) -> Iterator[Problem]:
        """Distinct problems of a split."""
        seen: set[str] = set()
        for i in count():
            problem = self._sample_one(split, derive_seed(self.name, split, seed, i))
            if derive_seed("split", self._content(problem)) % 10 in BUCKETS[split] and problem.id not in seen:
                seen.add(problem.id)
                yield self._solve(split, problem) if self._solve else problem
            elif i > 1000 * (len(seen) + 1):
                raise UserError(f"{self.name}: only {len(seen)} distinct {split} problems exist at these settings")

    def __getstate__(self) -> dict[str, Any]:
        """Without the splits: a process that grades is sent the task, and is told the problem with each answer."""
        return vars(self) | {"_splits": {}}
