"""PRM: a process reward model, taught by the values that vines have measured in earlier runs.

A state's label is its measured value, the mean reward of its K vines (Wang et al. 2024, "Math-Shepherd", soft labels),
and at a response's end the reward itself. What is trained is a token classifier of one logit, from the recipe's model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vineppo.config import Config
from vineppo.framing import Framing
from vineppo.machine.files import read_json, write_json
from vineppo.methods.epochs import Passes, run_steps
from vineppo.models import longest_prompt
from vineppo.rollout_files import rollout_files, rollouts_of
from vineppo.runs.recipe import Recipe
from vineppo.runs.run_folder import RECIPE, ROLLOUTS, read_result
from vineppo.runs.template_note import chat_of
from vineppo.seeding import derive_seed
from vineppo.segments import segment_texts
from vineppo.types import UserError

if TYPE_CHECKING:
    from vineppo.learner.classifier import LabelledResponse
    from vineppo.runs.session import Session

LABELS = "labels.json"
NUM_BINS = 10
"""Of predictions, for the calibration error."""


class PRMConfig(Config):
    runs: tuple[str, ...] = Field(min_length=1)
    """Folders of runs whose rollouts/ hold measured values, as VinePPO's do; a state counts as often as it was met."""
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    """Of the problems: never learnt from, for calibration and explained variance."""
    num_epochs: int = Field(default=2, ge=1)
    minibatch_size: int = Field(default=64, ge=1)
    """Responses per optimizer step."""


class PRMRecipe(Recipe):
    """For `vineppo prm`."""

    command, title, length, stepwise = "prm", "PRM", "prm.num_epochs", True
    trains_policy = False

    prm: PRMConfig


def run_prm(recipe: PRMRecipe, session: Session) -> None:
    from vineppo.learner.classifier import ClassifierLearner

    config, model, tokenizer = recipe.prm, session.setup.policy, session.setup.tokenizer
    rows = [row for run in config.runs for row in read_run(Path(run), tokenizer)]
    fitting = [row for row in rows if len(row.prompt_ids) + len(row.response_ids) <= longest_prompt(model) + 1]
    learnt, held_out = split_by_problem(fitting, config.holdout_share)
    labels = {"digest": f"{derive_seed(*map(repr, rows)):016x}"}
    check_labels(session, labels)

    def evaluate(done: int) -> None:
        with session.log.phase("evaluate"):
            found = measure_held_out(model, tokenizer, held_out)
        session.log.add({f"prm/{name}": number for name, number in found.items()})
        session.write_result(found, done)

    counts = {"num_responses": len(learnt), "num_held_out": len(held_out), "num_too_long": len(rows) - len(fitting)}
    passes = Passes(
        "prm",
        learnt,
        config.minibatch_size,
        config.num_epochs,
        {f"prm/{name}": count for name, count in counts.items()},
        lambda folder: write_json(folder / LABELS, labels),
    )
    learner = ClassifierLearner(recipe.learner, model, total_steps=passes.num_steps)
    if session.checkpoint:
        learner.load(session.checkpoint.folder)
    run_steps(session, learner, passes, step=learner.step, evaluate=evaluate)
    if read_result(session.folder).get("iteration") != passes.num_steps:  # it was lost
        session.write_result(measure_held_out(model, tokenizer, held_out), passes.num_steps)


def check_labels(session: Session, labels: dict[str, Any]) -> None:
    """Raises UserError where a run that goes on would learn from other labels than it began with."""
    if session.checkpoint and read_json(session.checkpoint.folder / LABELS) != labels:
        raise UserError(
            f"{session.folder}: the rollouts of prm.runs have changed since this run began; choose another --out"
        )


def read_run(folder: Path, tokenizer: Any) -> Iterator[LabelledResponse]:
    """Every response whose values were measured. Raises UserError where the run has none."""
    files, found = rollout_files(folder / ROLLOUTS), 0
    framing = Framing(tokenizer, chat_of(folder / RECIPE))
    for file in files.values():
        for number, rollout in enumerate(rollouts_of(file, str(file)), 1):
            if rollout.get("standard_errors") is not None and rollout["values"] is not None:
                found += 1
                yield label(rollout, framing, f"{file}:{number}")
    if not found:
        what = "no measured values; they are a run's of VinePPO" if files else "no files of rollouts"
        raise UserError(f"prm.runs: {folder / ROLLOUTS} has {what}, with train.save_rollouts_every above 0")


def label(rollout: dict[str, Any], framing: Framing, place: str) -> LabelledResponse:
    """A label weighs as many outcomes as it is the mean of; the end, which is certain, as much as the state before."""
    from vineppo.learner.classifier import LabelledResponse

    lengths, token_ids, num_vines = (rollout.get(key) for key in ("num_tokens", "token_ids", "num_vines"))
    if not (lengths and token_ids and num_vines):
        raise UserError(
            f"{place}: the tokens or the numbers of vines are missing; let this version sample the run again"
        )
    states = tuple(accumulate(lengths, initial=0))
    if states[-1] != len(token_ids) or not is_text_of(rollout["segments"], token_ids, states, framing.tokenizer):
        raise UserError(
            f"{place}: these are not the tokens of the recipe's model; choose a model.name with the run's tokenizer"
        )
    values = rollout["values"]
    outside = [value for value in values if not 0 <= value <= 1]
    if outside:
        raise UserError(f"{place}: a value of {outside[0]:g} is no probability; rewards must lie in [0, 1]")
    rows = list(zip(states, values, (*num_vines, num_vines[-1]), strict=True))
    measured = [row for row in rows if row[2]]  # of a state without vines nothing is known
    return LabelledResponse(
        rollout["problem"], framing.encode(rollout["prompt"]), tuple(token_ids), *zip(*measured, strict=True)
    )


def is_text_of(segments: Sequence[str], token_ids: Sequence[int], states: Sequence[int], tokenizer: Any) -> bool:
    return max(token_ids) < len(tokenizer) and segment_texts(tokenizer, token_ids, states) == segments


def split_by_problem(
    rows: Sequence[LabelledResponse], share: float
) -> tuple[list[LabelledResponse], list[LabelledResponse]]:
    """(to learn from, held out): the problems whose ids hash lowest are held out, so more data move few of them."""
    problems = sorted({row.problem for row in rows}, key=derive_seed)
    num_held_out = max(1, round(share * len(problems)))
    if num_held_out >= len(problems):
        raise UserError(
            f"prm.runs: {len(problems)} problems that fit the model leave none to learn from or to hold out"
        )
    held_out = set(problems[:num_held_out])
    return [row for row in rows if row.problem not in held_out], [row for row in rows if row.problem in held_out]


def measure_held_out(model: Any, tokenizer: Any, rows: Sequence[LabelledResponse]) -> dict[str, float]:
    """How good predictions are before a response's end, against values that are measured; and at its end."""
    from vineppo.models.reward_model import RewardModel

    predictions = RewardModel(model, tokenizer, "that is trained").read([row.sample for row in rows])
    states = [
        state
        for row, predicted in zip(rows, predictions, strict=True)
        for state in zip(predicted[:-1], row.labels[:-1], row.weights[:-1], strict=True)
    ]
    ends = [(row[-1] >= 0.5) == (labelled.labels[-1] >= 0.5) for row, labelled in zip(predictions, rows, strict=True)]
    return {**state_errors(states), "outcome_accuracy": sum(ends) / len(ends), "num_states": len(states)}


def state_errors(states: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Of (prediction, label, weight).

    explained_variance   1 - Var(label - prediction) / Var(label); labels of few vines are noisy, and bound it below 1
    calibration_error    mean |mean prediction - mean label| over ten bins of predictions, by their weight
    """
    variance = spread([(label, weight) for _, label, weight in states])
    rest = spread([(label - predicted, weight) for predicted, label, weight in states])
    bins: dict[int, list[tuple[float, float]]] = {}
    for predicted, label, weight in states:
        bins.setdefault(min(int(predicted * NUM_BINS), NUM_BINS - 1), []).append((predicted - label, weight))
    gaps = math.fsum(abs(math.fsum(gap * weight for gap, weight in of_bin)) for of_bin in bins.values())
    return {
        "explained_variance": 1 - rest / variance if variance else 0.0,
        "calibration_error": gaps / math.fsum(weight for _, _, weight in states),
    }


def spread(numbers: Sequence[tuple[float, float]]) -> float:
    """The variance of (number, weight)."""
    total = math.fsum(weight for _, weight in numbers)
    mean = math.fsum(number * weight for number, weight in numbers) / total
    return math.fsum(weight * (number - mean) ** 2 for number, weight in numbers) / total
