"""Problems that are drawn and not read: training problems without end, and fixed splits that share none with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice

from vineppo.seeding import derive_seed
from vineppo.types import Problem, UserError

BUCKETS = {"test": (0,), "validation": (1,), "train": tuple(range(2, 10))}
"""Tenths of all problems. A problem's own text decides which it is in."""


class DrawnProblems:
    """`sample_problem(split, seed)` gives one, which may be any; `name` is the task's."""

    def __init__(self, name: str, sample_problem: Callable[[str, int], Problem], *, num_validation: int, num_test: int):
        self.name, self._sample_problem = name, sample_problem
        self._sizes = {"validation": num_validation, "test": num_test}

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return list(islice(self._problems("train", seed), n))

    def split(self, name: str) -> list[Problem]:
        if name == "train":
            raise UserError(f"{self.name} has unlimited training problems; say how many, e.g. sft.num_problems=20000")
        if name not in self._sizes:
            raise UserError(f"{self.name} has no split {name!r}; it has validation and test")
        return list(islice(self._problems(name, 0), self._sizes[name]))

    def _problems(self, split: str, seed: int) -> Iterator[Problem]:
        """Distinct problems of a split."""
        seen: set[str] = set()
        for i in count():
            problem = self._sample_problem(split, derive_seed(self.name, split, seed, i))
            if derive_seed("split", problem.prompt) % 10 in BUCKETS[split] and problem.prompt not in seen:
                seen.add(problem.prompt)
                yield problem
            elif i > 1000 * (len(seen) + 1):
                raise UserError(f"{self.name}: only {len(seen)} distinct {split} problems exist at these settings")
