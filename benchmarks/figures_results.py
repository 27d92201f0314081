"""The numbers of docs/results.md that are the study's, from benchmarks/results/study and diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from figures import ci, load, over_runs, short

from vineppo.intervals import interval

TASKS = ("short", "middle", "long")
NAMES = {"vineppo": "VinePPO", "rloo": "RLOO", "grpo": "GRPO", "ppo": "PPO", "dpo": "DPO+", "restem": "RestEM"}
LR, CRITIC_LR = "learner.optim.lr", "credit.critic.optim.lr"


def study(task: str) -> dict[str, Any]:
    return load(f"study/{task}/comparison.json")


def method(task: str, name: str) -> dict[str, Any]:
    return study(task)["methods"][name]


def less(task: str, name: str, key: str = "final") -> dict[str, Any]:
    return study(task)["differences"][name][key]


def tokens(task: str, name: str) -> float:
    return method(task, name)["curve"][-1]["tokens"]


def final(task: str, name: str) -> float:
    return method(task, name)["final"]["mean"]


def commits(name: str) -> str:
    """Of the runs that a comparison was made from, but for those of the study itself."""
    found = sorted({run["commit"] for run in load(name)["runs"]})
    return " and ".join(f"`{commit}`" for commit in found if len(found) == 1 or commit != "bffa208f53e4")


def accuracy() -> Iterator[str]:
    yield from runs_started()
    yield from in_short()
    yield from final_accuracies()
    yield peaks()
    yield rates()


def runs_started() -> Iterator[str]:
    tried = [
        sum(len(row["validation_accuracy"]) for row in load(f"study/{task}/sweep.json")["sweep"]) for task in TASKS
    ]
    reported = sum(len(study(task)["runs"]) for task in TASKS)
    assert not any(study(task)["failed"] or load(f"study/{task}/sweep.json")["failed"] for task in TASKS)
    yield f"{sum(tried) + reported} runs were started: {sum(tried)} to choose rates ({tried[0]} short, {tried[1]} middle, "
    yield f"Code: commit {commits('study/short/comparison.json')}. "
    assert len({commits(f"study/{task}/comparison.json") for task in TASKS}) == 1
    yield f"{tried[2]} long), of which none failed, and {reported} reported ones"


def in_short() -> Iterator[str]:
    leads = [short(less(task, "rloo")["mean"]) for task in ("short", "middle")]
    yield f"{leads[0]} and {leads[1]} above the next best, RLOO, which five seeds cannot tell from 0"
    assert round(final("long", "vineppo"), 3) == round(study("long")["initial_accuracy"], 3)
    yield f"it ends where it began ({short(final('long', 'vineppo'))}), while RLOO and GRPO reach "
    assert short(final("long", "rloo"), 2) == short(final("long", "grpo"), 2)
    yield f"reach {short(final('long', 'rloo'), 2)}. Two tuning seeds chose it a rate"
    costs = [tokens(task, "vineppo") / tokens(task, "grpo") for task in TASKS]
    yield f"its accuracy costs {min(costs):.1f} to {max(costs):.1f} times the tokens"


def final_accuracies() -> Iterator[str]:
    """The table, row by row."""
    starts = [short(study(task)["initial_accuracy"]) for task in TASKS]
    yield (
        f"| | short (3-4 steps), start {starts[0]} | VinePPO less it | middle (6-8), start {starts[1]} "
        f"| VinePPO less it | long (10-12), start {starts[2]} | VinePPO less it |"
    )
    best = {task: max(NAMES, key=lambda name: final(task, name)) for task in TASKS}
    for name, written in NAMES.items():
        cells = []
        for task in TASKS:
            text = ci(method(task, name)["final"])
            bold = text.replace(" ", "** ", 1)
            cells.append(f"**{bold}" if best[task] == name else text)
            cells.append("" if name == "vineppo" else ci(less(task, name)))
        yield f"| {written} | " + " | ".join(cells).replace("|  |", "| |").strip() + (" |" if name != "vineppo" else "")


def peaks() -> str:
    of = {name: {key: method("short", name)[key]["mean"] for key in ("peak", "final")} for name in ("grpo", "ppo")}
    assert of["ppo"]["peak"] > of["grpo"]["peak"]
    assert of["ppo"]["final"] < of["grpo"]["final"]
    return (
        f"on short chains PPO's peak is {short(of['ppo']['peak'])} and GRPO's {short(of['grpo']['peak'])}, on long "
        f"chains VinePPO's is {short(method('long', 'vineppo')['peak']['mean'])} and RestEM's "
        f"{short(method('long', 'restem')['peak']['mean'])}"
    )


def rates() -> str:
    def of(name: str, key: str = LR) -> str:
        chosen = [load(f"study/{task}/sweep.json")["chosen"][name][key] for task in TASKS]
        return ", ".join(f"{rate:.0e}".replace("e-0", "e-") for rate in chosen)

    assert len(set(of("rloo").split(", "))) == 1
    return (
        f"VinePPO {of('vineppo')}; PPO {of('ppo')} ({of('ppo', CRITIC_LR)}); GRPO {of('grpo')}; "
        f"RLOO {of('rloo').split(', ')[0]} on all; RestEM {of('restem')}; DPO+ {of('dpo')}."
    )


def seconds(task: str, name: str) -> float:
    return method(task, name)["curve"][-1]["seconds"]


def by_axis() -> Iterator[str]:
    for name, written in {**NAMES, "restem": "RestEM (validation included)"}.items():
        cells = " | ".join(f"{tokens(task, name):,.0f} | {seconds(task, name):.0f}" for task in TASKS)
        yield f"| {written} | {cells} |"
    costs = [tokens(task, "vineppo") / tokens(task, "grpo") for task in TASKS]
    yield f"{costs[0]:.1f}, {costs[1]:.1f} and {costs[2]:.1f} times GRPO's tokens"
    level = final("middle", "ppo")
    taken = {name: first_at("middle", name, level) for name in ("vineppo", "grpo", "rloo")}
    yield (
        f"PPO's final accuracy ({short(level)}) takes VinePPO {taken['vineppo']['seconds']:.0f} s, GRPO "
        f"{taken['grpo']['seconds']:.0f} s and RLOO {taken['rloo']['seconds']:.0f} s (medians), though only "
        f"{taken['vineppo']['iteration']:.0f} iterations against their {taken['grpo']['iteration']:.0f}"
    )
    reach = {name: method("middle", name)["to_target"] for name in ("vineppo", "grpo", "rloo", "ppo")}
    words = {3: "three", 5: "five"}
    assert [reach[name]["num_reached"] for name in ("vineppo", "grpo", "rloo")] == [5, 5, 5]
    assert reach["grpo"]["iteration"] == reach["rloo"]["iteration"]
    yield (
        f"it reaches PPO's peak in {reach['vineppo']['iteration']:.0f} iterations (all five seeds), GRPO and RLOO in "
        f"{reach['grpo']['iteration']:.0f} (all five), PPO itself in {reach['ppo']['iteration']:.0f} "
        f"({words[reach['ppo']['num_reached']]})"
    )
    reach = {name: method("short", name)["to_target"] for name in ("vineppo", "grpo", "rloo", "ppo")}
    assert [reach[name]["num_reached"] for name in reach] == [5, 3, 3, 3]
    yield (
        f"all five seeds of VinePPO reach it, in {reach['vineppo']['iteration']:.0f} iterations; three of GRPO, RLOO "
        f"and PPO do, in {reach['grpo']['iteration']:.0f}, {reach['rloo']['iteration']:.0f} and "
        f"{reach['ppo']['iteration']:.0f}"
    )


def first_at(task: str, name: str, level: float) -> dict[str, float]:
    """Medians over the seeds that get there."""
    runs = [run for run in study(task)["runs"] if run["method"] == name]
    found = [next((p for p in run["points"] if p["accuracy"] >= level), None) for run in runs]
    return {key: median(p[key] for p in found if p) for key in ("seconds", "iteration")}


def logged(task: str, name: str, key: str) -> float:
    rows = load("diagnosis/whitening.json")
    return next(row[key]["mean"] for row in rows if (row["task"], row["method"]) == (task, name))


def kl_at_end(file: str, name: str) -> float:
    return load(file)["methods"][name]["curve"][-1]["kl"]


def long_chains() -> Iterator[str]:
    rate = load("diagnosis/rate.json")
    runs = {(run["method"], run["seed"]): run["final"] for run in rate["runs"]}
    paired = {
        other: interval([runs["vineppo-1e-4", seed] - runs[other, seed] for seed in range(5)])
        for other in ("vineppo", "rloo", "grpo")
    }
    yield (
        f"VinePPO ends at {ci(rate['methods']['vineppo-1e-4']['final'])}: {ci(paired['vineppo'])} above what was reported, "
        f"an interval that holds 0, and no longer apart from RLOO ({ci(paired['rloo'])}) or GRPO ({ci(paired['grpo'])})"
    )
    for task in ("middle", "long"):
        assert load(f"diagnosis/{task}/signal_to_noise.json")["environment"]["commit"] == "2d1913f17ca6"
    yield f"runs of {' and '.join(sorted(commits('diagnosis/rate.json').split(' and '), reverse=True))})"
    (chosen,) = (
        row["validation_accuracy"]
        for row in load("study/long/sweep.json")["sweep"]
        if row["method"] == "vineppo" and row[LR] == 2e-4
    )
    yield f"two tuning seeds at 2e-4 scored {short(chosen[0])} and {short(chosen[1])}"
    kl = {name: kl_at_end("diagnosis/rate.json", name) for name in ("vineppo", "vineppo-1e-4", "rloo", "grpo")}
    yield (
        f"At 2e-4 the policy ends {kl['vineppo']:.1f} nats from its reference, at 1e-4 {kl['vineppo-1e-4']:.1f}, RLOO at "
        f"1e-4 {kl['rloo']:.1f}, GRPO at 5e-5 {kl['grpo']:.1f}"
    )
    zero = {at: logged(*at, "credit/zero_frac") for at in (("long", "vineppo"), ("long", "grpo"), ("short", "vineppo"))}
    norms = [logged(t, "vineppo", "optim/grad_norm") / logged(t, "grpo", "optim/grad_norm") for t in TASKS]
    yield (
        f"{zero['long', 'vineppo']:.0%} of its advantages on long chains are exactly 0 (GRPO {zero['long', 'grpo']:.0%}, "
        f"short chains {zero['short', 'vineppo']:.0%})".replace("%", " %")
    )
    yield f"a spread of {short(logged('long', 'vineppo', 'credit/advantage_std'), 2)} that whitening stretches"
    yield f"norm is {norms[2]:.1f} times GRPO's there ({norms[0]:.1f} and {norms[1]:.1f} times on short and middle chains)"
    yield from signal_of_diagnosis()


def of_signal(where: str, estimator: str, kind: str, measure: str) -> dict[str, Any]:
    return over_runs(f"{where}/signal_to_noise.json", "signal", estimator=estimator, kind=kind, measure=measure)


def negated(value: dict[str, Any]) -> dict[str, Any]:
    low, high = value["ci95"]
    return {"mean": -value["mean"], "ci95": [-high, -low]}


def signal_of_diagnosis() -> Iterator[str]:
    wrong = {
        (task, name): of_signal(f"diagnosis/{task}", name, "first wrong step", "snr")
        for task in ("middle", "long")
        for name in ("VinePPO K=9", "GRPO")
    }
    size = {at: ci(negated(value), 2) for at, value in wrong.items()}
    yield (
        f"VinePPO (K = 9) {size['middle', 'VinePPO K=9']} against GRPO's {size['middle', 'GRPO']} on middle chains, and "
        f"{size['long', 'VinePPO K=9']} against {size['long', 'GRPO']} on long ones"
    )
    ratios = [wrong[task, "VinePPO K=9"]["mean"] / wrong[task, "GRPO"]["mean"] for task in ("middle", "long")]
    assert f"{ratios[0]:.1f}" == f"{ratios[1]:.1f}"
    yield f"on long ones: {ratios[0]:.1f} times GRPO's on both"
    right = [
        short(of_signal(f"diagnosis/{task}", name, "right step", "snr")["mean"], 2)
        for task in ("middle", "long")
        for name in ("VinePPO K=9", "GRPO")
    ]
    yield f"({right[0]} against {right[1]}; {right[2]} against {right[3]})"
    sign = {
        (task, name): of_signal(f"diagnosis/{task}", name, "first wrong step", "right_sign")
        for task in ("middle", "long")
        for name in ("VinePPO K=9", "GRPO")
    }
    yield (
        f"a tie (an advantage of 0) one half: VinePPO {ci(sign['long', 'VinePPO K=9'], 2)} and GRPO "
        f"{ci(sign['long', 'GRPO'], 2)} on long chains, {short(sign['middle', 'VinePPO K=9']['mean'], 2)} and "
        f"{short(sign['middle', 'GRPO']['mean'], 2)} on middle ones"
    )
    shares = [short(2 * sign[task, "GRPO"]["mean"] - 1, 2) for task in ("long", "middle")]
    yield f"share that is below 0 is {shares[0]} and {shares[1]}"
