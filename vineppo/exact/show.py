"""Tables and figures of what `vineppo exact` measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from vineppo.machine.tables import Row
from vineppo.report.charts import dots, save_figure

Result = Mapping[str, Any]

LEGEND = """\
V, A      against exact V at boundaries, A = Q - V of tokens, V(after) - V(before) of segments.
bias      of the gradient: length of its mean error, in lengths of the true gradient. "exact" is a
          sum over all responses; measured, an unbiased one shows about its standard error (±).
variance  of one batch's gradient, over its squared mean length along the true one.
tokens    per rollout: sampled, vines included; trained, in the loss; computed, forwards of one token
          in an engine that computes every distinct prefix once. "at equal ...": variance x tokens,
          over RLOO's.
critic    exact: V itself; wrong: 0.2 above or below, fixed per state. Here neither costs tokens.
unmerged  every rollout has vines of its own; else equal states of siblings are estimated once."""


def tables(result: Result) -> list[Table]:
    """An overview where there are several worlds, else all that is known of the one."""
    worlds = result["worlds"]
    if len(worlds) == 1:
        return [credit_table(worlds[0]), gradient_table(worlds[0], result["seed"])]
    halves = [worlds[: (len(worlds) + 1) // 2], worlds[(len(worlds) + 1) // 2 :]]
    return [overview(half, result["seed"]) for half in halves if half]


def overview(worlds: Sequence[Result], seed: int) -> Table:
    table = make_table(f"Variance at equal sampled tokens, RLOO = 1; ± standard error. Seed {seed}", "estimator")
    for world in worlds:
        table.add_column(world["name"], justify="right")
    names = dict.fromkeys(row["name"] for world in worlds for row in world["rows"])
    for name in names:
        rows = [next((row for row in world["rows"] if row["name"] == name), None) for world in worlds]
        table.add_row(name, *(plus_minus(row["variance_at_equal_sampled"]) if row else "" for row in rows))
    return table


def credit_table(world: Result) -> Table:
    table = make_table(f"{world['name']}: credit, bias and spread, root mean squares", "estimator")
    for column in ("V: bias", "spread", "token A: bias", "spread", "segment A: bias", "spread"):
        table.add_column(column, justify="right")
    for row in world["rows"]:
        names = ("values", "token_advantages", "segment_advantages")
        numbers = [row[f"{name}_{what}"] for name in names for what in ("bias", "std")]
        table.add_row(row["name"], *("" if number is None else f"{number:.2f}" for number in numbers))
    return table


def gradient_table(world: Result, seed: int) -> Table:
    title = "{name}: policy gradient, {num_batches} batches of {rollouts_per_batch} rollouts".format(**world)
    table = make_table(f"{title}, seed {seed}", "estimator")
    for column in ("exact\nbias", "\nmeasured", "\nvariance", "tokens\nsampled", "at equal\nsampled"):
        table.add_column(column, justify="right")
    for cost in ("trained", "computed"):
        table.add_column(f"at equal\n{cost}", justify="right")
    for row in world["rows"]:
        table.add_row(
            row["name"],
            "" if row["bias_exact"] is None else f"{row['bias_exact']:.3f}",
            f"{row['bias']:.2f} ± {row['bias_se']:.2f}",
            f"{row['variance']:.2f}",
            f"{row['tokens_sampled']:.1f}",
            *(plus_minus(row[f"variance_at_equal_{cost}"]) for cost in ("sampled", "trained", "computed")),
        )
    return table


def make_table(title: str, first: str) -> Table:
    table = Table(title=title, pad_edge=False, collapse_padding=True)
    table.add_column(first)
    return table


def plus_minus(number: Mapping[str, float]) -> str:
    digits = 1 if number["ratio"] >= 10 else 2
    return f"{number['ratio']:.{digits}f}±{number['se']:.{digits}f}"


def save_figures(result: Result, folder: Path) -> None:
    """One chart per world: variance at equal sampled, trained and computed tokens, with intervals of two standard
    errors of its logarithm."""
    for world in result["worlds"]:
        rows: list[Row] = [
            {
                "estimator": row["name"],
                "at equal": f"{cost} tokens",
                "variance": ratio,
                "low": ratio / math.exp(2 * se / ratio),
                "high": ratio * math.exp(2 * se / ratio),
            }
            for row in world["rows"]
            for cost in ("sampled", "trained", "computed")
            for ratio, se in [row[f"variance_at_equal_{cost}"].values()]
        ]
        title = f"{world['name']}: variance at equal tokens, RLOO = 1"
        save_figure(dots(title, rows, x="variance", y="estimator", by="at equal"), folder / f"{world['name']}.svg")
