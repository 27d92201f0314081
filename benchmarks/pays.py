"""`vineppo analyze --kind pays` held against the truth: its forecast of every estimator's cost, and the measured cost.

    python benchmarks/pays.py [--batches 40] [--seeds 0 1 2] [--out benchmarks/results/pays]

In the worlds of `vineppo exact` the measured cost is variance times sampled tokens over RLOO's, of the real estimators;
on embedded tasks (pays_tasks.py) the gradient is the model's. The forecast sees what the command sees: as many
responses and vines as it takes by default, sampled by the world's engine, never an exact value. Each seed is another
sample. Writes pays.json and pays.svg. About ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pays_tasks
from figures import RESULTS

from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.pays import take_pilots
from vineppo.analysis.pilot import with_alternatives
from vineppo.analysis.rates import UNKNOWN
from vineppo.analysis.verdict import forecast_rows, make_case
from vineppo.credit.tree import TreeConfig, TreeCredit
from vineppo.credit.vines import Vines, VinesConfig
from vineppo.exact.known import BestBaseline, exact_advantages
from vineppo.exact.measure import Summary, full_text, make_methods, run
from vineppo.exact.methods import GROUP_SIZE, ROWS, Row, ppo_row, vine_row
from vineppo.exact.play import make_environment
from vineppo.exact.worlds import WORLDS, find_world
from vineppo.intervals import NUM_RESAMPLES
from vineppo.machine.files import write_json
from vineppo.machine.limits import available_cores
from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.report.charts import Chart, save_figure
from vineppo.report.charts import points as cloud
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.seeding import derive_seed

Point = dict[str, Any]


def unbiased(world: Any, estimator: Any) -> Callable[[Any], Sequence[float]]:
    """What credit is on average where it is known to have no bias (tests/exact/)."""
    return lambda rollout: exact_advantages(world, full_text(world, rollout))


BASE = next(row for row in ROWS if row.name == "RLOO")
MEASURED = {  # forecast's name -> the row that runs in the worlds
    "grpo": next(row for row in ROWS if row.name == "GRPO"),
    "vineppo K=1": vine_row("VinePPO K=1", num_vines=1),
    "vineppo K=3": vine_row("VinePPO K=3", num_vines=3),
    "tree K=1": Row("tree K=1", lambda _, context: TreeCredit(TreeConfig(), context), unbiased, num_warmup=10),
    **{
        f"vines K={k}": Row(
            f"vines K={k}", lambda _, context, k=k: Vines(VinesConfig(num_vines=k), context), unbiased, num_warmup=10
        )
        for k in (0, 2)
    },
    "exact values": ppo_row(0, 0.0),
    "exact, best baseline": Row("best baseline", lambda world, _: BestBaseline(world), unbiased),
}


def world_points(name: str, *, num_batches: int, seeds: Sequence[int]) -> list[Point]:
    """A point per estimator and seed of the forecast."""
    measured = measure_world(name, num_batches)
    return [
        {"where": name, "seed": seed, "estimator": row["estimator"], **predicted(row), **measured[row["estimator"]]}
        for seed in seeds
        for row in forecast_world(name, seed)
        if row["estimator"] in measured
    ]


def predicted(row: Mapping[str, Any]) -> Point:
    return {"forecast": row["cost"], "low": row["low"], "high": row["high"]}


def measure_world(name: str, num_batches: int) -> dict[str, Point]:
    """Variance times sampled tokens over RLOO's, with its standard error."""
    world = find_world(name)
    rows = {key: row for key, row in MEASURED.items() if row.worlds is None or name in row.worlds}
    methods = make_methods(world, [BASE, *rows.values()])
    tallies, yardstick = run(world, methods, num_batches, 0)
    base, *others = (Summary(method, tally, yardstick) for method, tally in zip(methods, tallies, strict=True))
    found = {key: one.against(base, "sampled") for key, one in zip(rows, others, strict=True)}
    return {key: {"measured": one["ratio"], "se": one["se"]} for key, one in found.items()}


def forecast_world(name: str, seed: int) -> list[Point]:
    """With the responses and vines that the command takes by default."""
    world, config = find_world(name), AnalysisConfig(vines=(1, 3))
    environment = with_alternatives(make_environment(world))
    sampling = SamplingConfig(
        prompts_per_iteration=config.num_pilots, group_size=GROUP_SIZE, max_new_tokens=world.budget
    )
    problems = environment.task.sample(config.num_pilots, seed=0)
    groups = sample_groups(environment, problems, sampling, seed=derive_seed("pays", name, seed))
    case = make_case(take_pilots(environment, groups, config, seed=seed), UNKNOWN, config.vines)
    return forecast_rows(case, seed=seed)


def summarize(points: Sequence[Point]) -> Point:
    """Rank correlation of forecast and measured cost, over all pairs of a place and an estimator."""
    places = sorted({point["where"] for point in points})
    by_place = {place: [p for p in points if p["where"] == place] for place in places}
    rng = np.random.default_rng(0)
    resampled = [
        spearman([p for place in rng.choice(places, len(places)) for p in by_place[place]])
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5])
    ratios = np.log([p["forecast"] / p["measured"] for p in points if p["forecast"] > 0])
    return {
        "num_places": len(places),
        "num_points": len(points),
        "rank_correlation": spearman(points),
        "low": float(low),
        "high": float(high),
        "within_places": float(np.mean([spearman(some) for some in by_place.values()])),
        "median_factor": float(np.exp(np.median(np.abs(ratios)))),
        "same_side_of_1": float(np.mean([(p["forecast"] < 1) == (p["measured"] < 1) for p in points])),
        "covered": float(np.mean([p["low"] <= p["measured"] <= p["high"] for p in points])),
    }


def spearman(points: Sequence[Point]) -> float:
    """Correlation of ranks; equal numbers share the mean of theirs."""
    columns = [np.array([point[key] for point in points]) for key in ("forecast", "measured")]
    ranks = [(column[:, None] > column).sum(axis=1) + (column[:, None] == column).sum(axis=1) / 2 for column in columns]
    return float(np.corrcoef(*ranks)[0, 1])


def scatter(points: Sequence[Point]) -> Chart:
    """On logarithmic axes, with y = x."""
    ends = [f(p[key] for p in points) for f in (min, max) for key in ("forecast", "measured")]
    return cloud(
        "Cost at equal sampled tokens, RLOO = 1", points, x="forecast", y="measured", by="estimator",
        diagonal=(min(ends), max(ends)), log=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "pays")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    one = partial(world_points, num_batches=args.batches, seeds=args.seeds)
    names = sorted(WORLDS, key=lambda name: -WORLDS[name].budget)  # the longest first
    with get_context("forkserver").Pool(min(available_cores(), len(names))) as pool:
        worlds = [point for points in pool.imap_unordered(one, names) for point in points]
    head = {**describe_machine(pick_device("cpu")), "num_batches": args.batches, "seeds": args.seeds}
    save(head, {"worlds": worlds}, args.out)  # before the tasks, which take longer
    save(head, {"worlds": worlds, "tasks": pays_tasks.points(args.seeds)}, args.out)


def save(head: Point, found: Mapping[str, Sequence[Point]], folder: Path) -> None:
    summaries = {name: summarize(points) for name, points in found.items()}
    write_json(folder / "pays.json", {**head, **summaries, "points": dict(found)})
    for name, points in found.items():
        save_figure(scatter(points), folder / f"{name}.svg")


if __name__ == "__main__":
    main()
