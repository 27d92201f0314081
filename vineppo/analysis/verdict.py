"""From pilots to tables: the forecast of every estimator, positions along the response, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vineppo.analysis import forecast
from vineppo.analysis.forecast import Allocation, Forecast
from vineppo.analysis.forecast_tree import tree
from vineppo.analysis.forecast_vines import vines
from vineppo.analysis.forks import BASELINES
from vineppo.analysis.moments import Chain, difference_weights, padded, squared_credit
from vineppo.analysis.pilot import Pilot
from vineppo.analysis.rates import Rates
from vineppo.credit.tree import TreeConfig
from vineppo.credit.vines import VinesConfig
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine.tables import Row

MAX_POSITIONS = 12
BASE = "rloo"
BOUNDS = ("exact values", "exact, best baseline", "exact, all actions")
WITHOUT_VINES = (BASE, "grpo")
APPROXIMATE = ("vines K=0", "vines K=2", "tree K=1")
KINDS = {BASE: "formula", "grpo": "formula", **dict.fromkeys(APPROXIMATE, "approximation")}
"""Of those that train as they stand: whether the forecast is exact, but for scores that are not orthogonal."""
Found = Mapping[str, float | None]


@dataclass(frozen=True)
class Case:
    """Everything that is compared, per problem [n]."""

    problems: Sequence[str]
    lengths: np.ndarray
    forecasts: Mapping[str, Forecast]
    allocation: Allocation
    rates: Rates


def make_case(pilots: Sequence[Pilot], rates: Rates, num_vines: Sequence[int]) -> Case:
    forecasts = {
        BASE: forecast.rloo(pilots),
        "grpo": forecast.grpo(pilots),
        **{f"vineppo K={k}": forecast.vineppo(pilots, k) for k in num_vines},
        "vines K=0": vines(pilots, VinesConfig(num_vines=0)),
        "vines K=2": vines(pilots, VinesConfig(num_vines=2)),
        "tree K=1": tree(pilots, TreeConfig()),
        "ppo, right": forecast.exact_baseline(pilots),
        "ppo, ignorant": forecast.constant_baseline(pilots),
        **{name: forecast.exact_forks(pilots, baseline) for name, baseline in zip(BOUNDS, BASELINES, strict=True)},
    }
    return Case(
        problems=[pilot.chain.problem for pilot in pilots],
        lengths=np.array([np.mean([r.num_actions for r in pilot.group]) for pilot in pilots]),
        forecasts=forecasts,
        allocation=forecast.allocation(pilots),
        rates=rates,
    )


def ratios(case: Case, weights: np.ndarray) -> dict[str, dict[str, float]]:
    """Of every forecast to RLOO's, over problems that count as often as `weights` says."""
    base = case.forecasts[BASE]
    square, length = weighted_mean(base.squares, weights), weighted_mean(case.lengths, weights)
    found = {}
    for name, one in case.forecasts.items():
        vine, extra = weighted_mean(one.vine_tokens, weights), weighted_mean(one.extra_trained, weights)
        variance = max(weighted_mean(one.squares, weights), 0.0) / square if square else np.nan
        spent, usual = case.rates.seconds(length, vine, length + extra), case.rates.seconds(length, 0.0, length)
        found[name] = {
            "variance": variance,
            "tokens": 1 + vine / length,
            "cost": variance * (1 + vine / length),
            "cost_in_seconds": variance * spent / usual if spent is not None and usual else np.nan,
        }
    return found


def best_allocation(case: Case, weights: np.ndarray) -> float:
    """VinePPO's cost over RLOO's with the best number of vines at every position, were it no whole number:
    (sqrt(B L) + sum_j sqrt(a_j c_j))^2 / (W L)."""
    square, exact = (weighted_mean(case.forecasts[name].squares, weights) for name in (BASE, BOUNDS[0]))
    length = weighted_mean(case.lengths, weights)
    a_S, c_S = (column_means(table_nS, weights) for table_nS in (case.allocation.noise, case.allocation.costs))
    root = np.sqrt(max(exact, 0.0) * length) + np.sqrt(np.maximum(a_S * c_S, 0.0)).sum()
    return root**2 / (square * length) if square else np.nan


def column_means(table_nS: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [S]
    return weights @ table_nS / weights.sum() if weights.sum() else np.full(table_nS.shape[1], np.nan)


def forecast_rows(case: Case, *, seed: int) -> list[Row]:
    """What has a formula has a cost and an interval; a range has the two ends between which it lies."""
    keys: tuple[str, ...] = ("cost", "variance", "tokens", "cost_in_seconds")

    def statistic(weights: np.ndarray) -> np.ndarray:
        found = ratios(case, weights)
        return np.array([found[name][key] for name in found for key in keys] + [best_allocation(case, weights)])

    *numbers, best = bootstrap(statistic, case.problems, seed=seed)
    starts = range(0, len(numbers), len(keys))
    by_name: dict[str, Mapping[str, Found]] = {
        name: dict(zip(keys, numbers[start : start + len(keys)], strict=True))
        for name, start in zip(case.forecasts, starts, strict=True)
    }
    best_k = {"estimator": "vineppo, best K", "kind": "bound", "cost": best["estimate"], **ends(best)}
    rates = case.rates
    return [
        *(row_of(name, kind, by_name[name]) for name, kind in KINDS.items() if name in by_name),
        *(row_of(name, "formula", found) for name, found in by_name.items() if name.startswith("vineppo")),
        best_k,
        range_row("ppo", by_name["ppo, right"], by_name["ppo, ignorant"], explained=rates.explained_variance),
        range_row("vine_critic", by_name[BOUNDS[1]], by_name[BASE], cost=rates.square_left),
        *(row_of(name, "bound", by_name[name]) for name in BOUNDS),
    ]


def row_of(name: str, kind: str, found: Mapping[str, Found]) -> Row:
    plain = {key: found[key]["estimate"] for key in ("variance", "tokens", "cost_in_seconds")}
    return {"estimator": name, "kind": kind, "cost": found["cost"]["estimate"], **ends(found["cost"]), **plain}


def ends(found: Found) -> Row:
    return {"low": found["low"], "high": found["high"]}


def range_row(
    name: str,
    right: Mapping[str, Found],
    ignorant: Mapping[str, Found],
    *,
    explained: float | None = None,
    cost: float | None = None,
) -> Row:
    """From a critic that is always right to one that explains nothing. Where the run had one, `cost` is what it left,
    or lies as far between the two as the variance it explained."""
    best, worst = right["cost"]["estimate"], ignorant["cost"]["estimate"]
    if explained is not None and best is not None and worst is not None:
        cost = worst + max(0.0, min(1.0, explained)) * (best - worst)
    bounds = [end for found in (right, ignorant) for end in ends(found["cost"]).values() if end is not None]
    low, high = (min(bounds), max(bounds)) if bounds else (None, None)
    return {"estimator": name, "kind": "range", "cost": cost, "low": low, "high": high, "tokens": 1.0}


def position_rows(pilots: Sequence[Pilot], case: Case, *, seed: int) -> list[Row]:
    chains = [pilot.chain for pilot in pilots]
    decided_nS = padded([squared_credit(c, difference_weights(c.num_segments)) for c in chains])
    exact, length = max(case.forecasts[BOUNDS[0]].squares.mean(), 0.0), case.lengths.mean()
    width = -(-decided_nS.shape[1] // MAX_POSITIONS)
    rows = []
    for first in range(0, decided_nS.shape[1], width):
        place = slice(first, first + width)

        def statistic(weights: np.ndarray, place: slice = place) -> np.ndarray:
            variance = weighted_mean(np.array([c.spreads[0] for c in chains]), weights)
            decided = column_means(decided_nS[:, place], weights).sum()
            return np.array([decided / variance if variance else np.nan])

        (decides,) = bootstrap(statistic, case.problems, seed=seed)
        there = [slice(first, min(first + width, c.num_segments)) for c in chains]
        noise, cost = (table[:, place].sum() / len(chains) for table in (case.allocation.noise, case.allocation.costs))
        rows.append(
            {
                "segments": str(first) if width == 1 else f"{first}-{first + width - 1}",
                "responses": sum(c.num_segments > first for c in chains),
                "decides": decides["estimate"],
                **ends(decides),
                "energy": sum(c.energies[s].sum() for c, s in zip(chains, there, strict=True)) / len(chains),
                "settled": settled_share(chains, there),
                "noise": float(noise),
                "tokens": float(cost),
                "best_k": float(np.sqrt(noise * length / (exact * cost))) if exact and cost and noise > 0 else None,
            }
        )
    return rows


def settled_share(chains: Sequence[Chain], places: Sequence[slice]) -> float | None:
    """Of the states there, those whose few vines all earned the same: hardly worth another one."""
    spreads = [spread for chain, place in zip(chains, places, strict=True) for spread in chain.spreads[place]]
    return float(np.mean([spread == 0 for spread in spreads])) if spreads else None


def sample_row(pilots: Sequence[Pilot], case: Case) -> Row:
    """What was sampled, and the numbers that all others are ratios of: W and B of docs/methods.md."""
    rewards = [rollout.reward for pilot in pilots for rollout in pilot.group]
    return {
        "problems": len(pilots),
        "responses": len(rewards),
        "vines": sum(pilot.num_vines for pilot in pilots),
        "length": float(case.lengths.mean()),
        "reward": float(np.mean(rewards)),
        "variance_within_problems": float(np.mean([np.var([r.reward for r in p.group], ddof=1) for p in pilots])),
        "square_rloo": float(case.forecasts[BASE].squares.mean()),
        "square_exact": float(case.forecasts[BOUNDS[0]].squares.mean()),
        "tried_mass": float(np.mean([pilot.fork_mass for pilot in pilots])),
    }


def answer(rows: Sequence[Row], positions: Sequence[Row]) -> str:
    """One sentence; where the interval reaches across 1 it says so."""
    with_value, *_, all_actions = (next(row for row in rows if row["estimator"] == name) for name in BOUNDS)
    if all_actions["cost"] is None:
        return "unknown: all responses to a problem earn the same, so there is nothing to give credit for"
    most = f"at most {cut(all_actions)} ({cut(with_value)} with V as baseline)"
    advice = f"recommended: {recommend(rows)}{worth_measuring(positions)}"
    return f"measured credit can cut the variance here by {most}; {advice}"


def cut(row: Row) -> str:
    """1 - what is left, with its interval; nothing is left only where an estimate that may err came out below 0."""
    if row["cost"] is not None and row["cost"] <= 0:
        return "an unknown share (it came out below 0; raise num_pilots or pilot_vines)"
    shares = [row["cost"], row["high"], row["low"]]
    cost, low, high = (None if left is None else f"{1 - left:.0%}" for left in shares)
    return f"{cost} [{low}, {high}]" if low and high else f"{cost}"


def recommend(rows: Sequence[Row]) -> str:
    """By cost at equal sampled tokens, among those that have a formula and are not compared with."""
    dear = [
        row for row in rows if row["kind"] in ("formula", "approximation") and row["estimator"] not in WITHOUT_VINES
    ]
    best = min((row for row in dear if row["high"] is not None), key=lambda row: row["cost"], default=None)
    if best is None or best["low"] == best["high"]:
        return "unknown, as there is no interval"
    takes = f"{best['cost']:.2f} [{best['low']:.2f}, {best['high']:.2f}] times RLOO's tokens"
    critic = next(row for row in rows if row["estimator"] == "vine_critic")
    learnt = f"; vine_critic takes between {critic['low']:.2f} and 1, as its critic learns"
    if best["high"] < 1:
        return f"{best['estimator']}, which takes {takes} for the same noise{learnt}"
    if best["low"] > 1:
        return f"rloo or grpo, which compare whole responses ({best['estimator']} takes {takes}){learnt}"
    return f"unknown ({best['estimator']} takes {takes}; raise num_pilots){learnt}"


def worth_measuring(positions: Sequence[Row]) -> str:
    ranked = [row for row in positions if row["best_k"] is not None]
    if not ranked:
        return ""
    return f"; a vine is worth most at segment {max(ranked, key=lambda row: row['best_k'])['segments']}"
