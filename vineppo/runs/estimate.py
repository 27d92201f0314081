"""What a recipe asks for, reckoned before anything is built: what cannot fit in the memory is refused, what may take
days is announced.
"""

from __future__ import annotations

from math import ceil

from vineppo.credit.states import StatesConfig
from vineppo.machine.limits import available_memory_bytes
from vineppo.models.sizes import count_tiny_parameters, format_bytes, model_bytes
from vineppo.runs.recipe import Recipe, SamplingRecipe
from vineppo.types import UserError

CONTINUATION_BYTES = 500
"""The least that a continuation takes: its request, its result and its text, of one token each."""
TOKENS_PER_S = 10_000
"""About what a GPU samples of a model of a billion parameters, and two cores of the quickstart's; many do less."""
DAY_S = 86_400
COPIES = 4
"""Of the weights, at the least: policy, gradient and two moments."""


def check_sizes(recipe: Recipe) -> None:
    """Raises UserError for what the memory that this process may hold is certainly too small for."""
    available = available_memory_bytes()
    for what, needed, advice in (*_model(recipe), *_continuations(recipe), *_evaluations(recipe)):
        if needed > available:
            raise UserError(
                f"{what} need at least {format_bytes(needed)}, and this process may hold {format_bytes(available)}; "
                f"lower {advice}"
            )


def announce_days(recipe: Recipe) -> str | None:
    """A line on a run whose rollouts, with the vines of one state each, may take more than a day of sampling."""
    if not isinstance(recipe, SamplingRecipe):
        return None
    sampling, vines = recipe.sampling, recipe.num_vines
    rollouts = recipe.num_rounds * sampling.prompts_per_iteration * sampling.group_size
    tokens = rollouts * (1 + vines) * sampling.max_new_tokens
    days = tokens / TOKENS_PER_S / DAY_S
    if days <= 1:
        return None
    return (
        f"this recipe may sample {tokens:,} tokens or more, {days:,.0f} days at {TOKENS_PER_S:,} tokens a second: "
        f"{rollouts:,} rollouts of at most {sampling.max_new_tokens:,} tokens"
        + (f", each with {vines:,} vines of one state" if vines else "")
    )


def announce_vines(recipe: Recipe) -> str | None:
    """A line on what vines cost. The vines of state j of S write (S - j) / S of a response each, on average."""
    vines = recipe.num_vines if isinstance(recipe, SamplingRecipe) else 0
    if not vines:
        return None
    most = most_states(recipe)
    states, example = ("every state", 10) if most is None else (f"each of at most {most} states", most)
    return (
        f"credit: at most {vines} vines from {states} of a response; with S states they take up to {vines} (S + 1) / 2 "
        f"times its tokens, {vines * (example + 1) / 2:g} times with {example} (credit.states says which states are "
        "measured; `vineppo analyze RUN --kind pays` whether they pay)"
    )


def most_states(recipe: Recipe) -> int | None:
    """Of a response; None where only its text tells."""
    assert isinstance(recipe, SamplingRecipe)
    sampling, credit = recipe.sampling, getattr(recipe, "credit", None)
    states = getattr(credit, "states", StatesConfig())
    bounds = [states.first, getattr(credit, "max_states_per_rollout", None)]
    if states.kind == "stride":
        assert states.stride is not None
        bounds.append(ceil(sampling.max_new_tokens / (states.stride * states.every)))
    if states.kind == "turns" and sampling.max_turns:
        bounds.append(ceil(sampling.max_turns / states.every))
    return min((bound for bound in bounds if bound is not None), default=None)


def _model(recipe: Recipe) -> list[tuple[str, int, str]]:
    tiny = recipe.model.from_scratch
    if tiny is None:
        return []
    weights = model_bytes(count_tiny_parameters(tiny), tiny.num_layers)
    return [("the model, its gradient and its optimizer", COPIES * weights, "the sizes in model.from_scratch")]


def _continuations(recipe: Recipe) -> list[tuple[str, int, str]]:
    if not isinstance(recipe, SamplingRecipe):
        return []
    rollouts = recipe.sampling.prompts_per_iteration * recipe.sampling.group_size
    keys = "sampling.prompts_per_iteration or group_size"
    found = [(f"{rollouts:,} rollouts at once", CONTINUATION_BYTES * rollouts, keys)]
    if vines := recipe.num_vines:
        what = f"{vines * rollouts:,} vines at once, from one state of every rollout,"
        found.append((what, CONTINUATION_BYTES * vines * rollouts, f"credit.num_vines, {keys}"))
    return found


def _evaluations(recipe: Recipe) -> list[tuple[str, int, str]]:
    return [
        (f"{config.num_samples:,} samples of a problem", CONTINUATION_BYTES * config.num_samples, f"{name}.num_samples")
        for name, config in recipe.evaluations.items()
    ]
