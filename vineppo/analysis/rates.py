"""How fast a run samples and learns, and how long its responses are: from what it has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vineppo.machine.files import read_lines
from vineppo.runs.metrics import METRICS, TIMINGS

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Rates:
    """None where the run has not measured it."""

    policy: float | None  # sampled tokens per second, grading included
    vine: float | None
    update: float | None  # seconds per response token that is learnt from, all epochs and scoring included
    length: float | None  # tokens of a response
    num_segments: float | None
    explained_variance: float | None  # of the run's critic, last
    square_left: float | None  # of RLOO's mean square behind a critic that vines teach, last

    def seconds(self, num_policy: float, num_vine: float, num_trained: float) -> float | None:
        """Of tokens that are sampled as responses, sampled as vines, and learnt from."""
        if not self.policy or self.update is None:
            return None
        return num_policy / self.policy + num_vine / (self.vine or self.policy) + num_trained * self.update


UNKNOWN = Rates(*(None,) * 7)


def read_rates(run: Path) -> Rates:
    """Over all its iterations that have both lines."""
    metrics, timings = (read_lines(run / name) if (run / name).exists() else [] for name in (METRICS, TIMINGS))
    by_iteration = {line.get("iteration"): line for line in timings}
    both = [(line, by_iteration[line["iteration"]]) for line in metrics if line.get("iteration") in by_iteration]
    counted, timed = [line for line, _ in both], [line for _, line in both]
    num_responses = total(counted, "rollouts/num")
    trained = sum(number(line, "rollouts/num") * number(line, "rollouts/length_mean") for line in counted)
    updating = total(timed, "seconds/score") + total(timed, "seconds/update")
    return Rates(
        policy=ratio(total(counted, "tokens/policy"), total(timed, "seconds/sample")),
        vine=ratio(total(counted, "tokens/vine"), total(timed, "seconds/credit")),
        update=ratio(updating, trained),
        length=ratio(trained, num_responses),
        num_segments=last(metrics, "rollouts/segments_mean"),
        explained_variance=last(metrics, "critic/explained_variance"),
        square_left=last(metrics, "credit/square_left"),
    )


def number(line: Line, key: str) -> float:
    """0 where it is missing or was not finite."""
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def last(lines: Sequence[Line], key: str) -> float | None:
    return next((float(line[key]) for line in reversed(lines) if isinstance(line.get(key), int | float)), None)


def total(lines: Sequence[Line], key: str) -> float:
    return sum(number(line, key) for line in lines)


def ratio(part: float, whole: float) -> float | None:
    return part / whole if part and whole else None
