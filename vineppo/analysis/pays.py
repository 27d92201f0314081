"""Will measured credit pay here? From a few responses of a run's last policy and a few hundred vines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vineppo.analysis.measured import AnalysisConfig, draw_groups
from vineppo.analysis.pilot import Pilot, sample_pilots, with_alternatives
from vineppo.analysis.rates import Rates, read_rates
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, Subject, last_checkpoints, open_subject
from vineppo.analysis.verdict import answer, forecast_rows, make_case, position_rows, sample_row
from vineppo.environment import Environment
from vineppo.machine.tables import Row
from vineppo.machine.terminal import echo
from vineppo.report.charts import bars
from vineppo.seeding import derive_seed
from vineppo.types import Group, UserError

TITLE = "Will measured credit pay?"
TEXT = (
    "A forecast for the policy of a checkpoint, from num_pilots problems with group_size responses each, pilot_vines "
    "vines from every state of the first one and from the likeliest actions at pilot_forks of its tokens. forecast: "
    "the cost of an estimator is the mean square of one response's gradient times the sampled tokens, over RLOO's: "
    "below 1 it is ahead at equal sampled tokens. cost_in_seconds takes the run's own speeds of sampling and learning. "
    "A range lies between a critic that is right and one that knows nothing, a bound is what no estimator of its kind "
    "can beat. positions: the share of the reward's variance that segments decide, the score energy of their tokens, "
    "the states whose few vines agreed (settled), and what one vine leaves of noise and takes of tokens; VinePPO is "
    "cheapest with best_k of them. Intervals: 95 %, bootstrap over problems. Formulas: docs/methods.md."
)
ACTIONS_PER_FORK = 2.5
"""A guess, for the estimate of the cost alone."""


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    tables: dict[str, list[Row]] = {"forecast": [], "positions": [], "sample": [], "answer": []}
    for checkpoint in checkpoints:
        rates = read_rates(checkpoint.run)
        echo(f"{checkpoint.run}: {announce(checkpoint, config, rates)}")
        with open_subject(checkpoint) as subject:
            pilots = draw_pilots(subject, config)
        for name, rows in judge(pilots, rates, config).items():
            tables[name] += [checkpoint.header | row for row in rows]
    shown = {name: last_checkpoints(tables[name], checkpoints) for name in ("forecast", "positions")}
    drawn = (
        ("forecast", "Forecast of the cost at equal sampled tokens, RLOO = 1, last checkpoints", "estimator", "cost"),
        ("positions", "Share of the reward's variance that segments decide, last checkpoints", "segments", "decides"),
    )
    charts = {
        name: plot(bars, title, shown[name], by=(x, "method"), x=x, y=y, colour_by="method")
        for name, title, x, y in drawn
    }
    return Result("pays", TITLE, TEXT, tables, charts)


def announce(checkpoint: RunCheckpoint, config: AnalysisConfig, rates: Rates) -> str:
    """What it will cost, before anything is sampled, by how long the run's own responses were."""
    budget = checkpoint.recipe.sampling.max_new_tokens
    length, num_segments = rates.length or budget, rates.num_segments or 1
    num_responses = config.num_pilots * config.group_size
    num_vines = config.num_pilots * config.pilot_vines * ((num_segments - 1) + config.pilot_forks * ACTIONS_PER_FORK)
    num_tokens = num_vines * length / 2
    seconds = rates.seconds(num_responses * length, num_tokens, 0)
    time = "unknown time" if seconds is None else f"{seconds:.0f} s"
    return (
        f"{num_responses:,} responses and about {num_vines:,.0f} vines, {num_responses * length + num_tokens:,.0f} "
        f"tokens, {time} by the run's own speed"
    )


def draw_pilots(subject: Subject, config: AnalysisConfig) -> list[Pilot]:
    if config.group_size < 3:
        raise UserError(
            f"pays: group_size = {config.group_size}: the value of a prompt needs siblings; give at least 3"
        )
    with_forks = replace(subject, environment=with_alternatives(subject.environment))
    groups = draw_groups(with_forks, config.model_copy(update={"num_problems": config.num_pilots}))
    return take_pilots(subject.environment, groups, config, seed=derive_seed(config.seed, "pays"))


def take_pilots(environment: Environment, groups: Sequence[Group], config: AnalysisConfig, *, seed: int) -> list[Pilot]:
    """`groups` were sampled with alternatives; vines need none."""
    if all(group[0].num_segments == 1 for group in groups):
        raise UserError(
            "pays: none of these responses has a second segment, so there is no state whose value could be measured; "
            "compare whole responses (rloo, grpo), or give the task a segment method that cuts them"
        )
    num_vines, num_forks = config.pilot_vines, config.pilot_forks
    return sample_pilots(environment, groups, num_vines=num_vines, num_forks=num_forks, seed=seed)


def judge(pilots: Sequence[Pilot], rates: Rates, config: AnalysisConfig) -> dict[str, list[Row]]:
    case = make_case(pilots, rates, config.vines)
    rows, positions = forecast_rows(case, seed=config.seed), position_rows(pilots, case, seed=config.seed)
    return {
        "forecast": rows,
        "positions": positions,
        "sample": [sample_row(pilots, case)],
        "answer": [{"answer": answer(rows, positions)}],
    }
