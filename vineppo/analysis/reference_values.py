"""Reference values: what an analysis takes for the truth. Many vines with seeds of their own, never a prediction.

They are kept on disk by content (weights, sampling, state, budget, number, seed), as they are measured: an analysis
that was stopped goes on where it was, and the next one finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from vineppo.analysis.subject import Subject
from vineppo.credit.states import state_key
from vineppo.environment import Environment, State
from vineppo.machine.files import append_line, parse_object, write_file
from vineppo.seeding import derive_seed
from vineppo.types import UserError

CHUNK = 32
"""States in one engine call: what a kill can lose."""


class ReferenceValues:
    def __init__(self, folder: Path, fingerprint: str, environment: Environment, num_vines: int, *, seed: int):
        self.environment = environment
        self.num_vines = num_vines
        self.seed = seed
        key = derive_seed(fingerprint, repr(environment.params), num_vines, seed)
        self.path = folder / f"{key:016x}.jsonl"
        self._known = read_known(self.path)

    @classmethod
    def of(cls, subject: Subject, num_vines: int, *, seed: int) -> ReferenceValues:
        """Kept below the run that they are values of."""
        folder = subject.checkpoint.run / "analysis" / "reference"
        return cls(folder, subject.checkpoint.fingerprint, subject.environment, num_vines, seed=seed)

    def values(self, states: Sequence[State], budgets: Sequence[int]) -> list[float]:
        """V of every state for its budget of new tokens, the mean reward of `num_vines` vines."""
        keys = [derive_seed(*state_key(state), budget) for state, budget in zip(states, budgets, strict=True)]
        wanted = {key: (state, budget) for key, state, budget in zip(keys, states, budgets, strict=True)}
        missing = [(key, *wanted[key]) for key in wanted if key not in self._known]
        for start in range(0, len(missing), CHUNK):
            self._measure(missing[start : start + CHUNK])
        return [self._known[key] for key in keys]

    def _measure(self, chunk: Sequence[tuple[int, State, int]]) -> None:
        keys, states, budgets = zip(*chunk, strict=True)
        vines = self.environment.branch(
            states,
            budgets,
            self.num_vines,
            seed=lambda state, k: derive_seed(self.seed, "reference", *state_key(state), k),
            purpose="reference",
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for key, continuations in zip(keys, vines, strict=True):
            self._known[key] = fmean(vine.grade.reward for vine in continuations)
            append_line(self.path, {"state": key, "value": self._known[key]})


def read_known(path: Path) -> dict[int, float]:
    """A line that a kill tore is cut off; a damaged one, and what is no value, is measured again."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_file(path, whole)
    return dict(filter(None, map(read_entry, whole.decode(errors="replace").splitlines())))


def read_entry(line: str) -> tuple[int, float] | None:
    try:
        entry = parse_object(line, "")
    except UserError:
        return None
    state, value = entry.get("state"), entry.get("value")
    if not isinstance(state, int) or not isinstance(value, int | float):
        return None
    return (state, float(value)) if 0 <= value <= 1 else None  # as rewards are
