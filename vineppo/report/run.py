"""What is shown of a run: what it was, what it reached, what went wrong on the way, its curves and its rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vineppo.methods import METHODS
from vineppo.report.charts import Chart, bars, lines

ESTIMATORS = {"vineppo": "VinePPO", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "vine_critic": "RLOO with a critic"}
NOTES = {
    "VinePPO": "V of a state is the mean reward of its vines, continuations sampled from there; "
    "a segment's advantage is how much it changed V.",
    "PPO": "V is the critic's estimate; a segment's advantage is the mean of its tokens' advantages (GAE).",
    "GRPO": "Every token of a response has the same advantage: its reward against those of its siblings.",
    "RLOO": "Every token of a response has the same advantage: its reward less the mean of its siblings'.",
}
CURVES: tuple[tuple[str, str, Mapping[str, str]], ...] = (  # title, unit, metric key -> name of its line
    (
        "Reward",
        "reward",
        {
            "reward/mean": "mean of responses",
            "credit/initial_value_mean": "V of the prompts",
            "reward/solved_prompts_frac": "share of prompts solved",
        },
    ),
    ("Loss of SFT", "nats per token", {"sft/nll": "worked solutions or kept responses"}),
    ("Margin of DPO+", "nats", {"dpo/margin": "margin", "dpo/loss": "loss"}),
    (
        "KL to the reference policy",
        "nats per response",
        {"kl/reference": "training", "eval/kl_reference": "evaluation"},
    ),
    (
        "Entropy",
        "nats per token",
        {"policy/entropy": "entropy", "policy/nll": "-log-prob of sampled tokens"},
    ),
    ("Clipped tokens", "share of tokens", {"policy/clip_frac": "policy", "critic/clip_frac": "critic"}),
    ("Response length", "tokens", {"rollouts/length_mean": "training", "eval/length_mean": "evaluation"}),
    ("Segments per response", "segments", {"rollouts/segments_mean": "segments"}),
    (
        "Values and advantages",
        "reward",
        {
            "credit/value_mean": "mean of V",
            "credit/value_std": "spread of V",
            "credit/advantage_std": "spread of advantages",
        },
    ),
    ("Loss of PRM", "nats per state", {"prm/loss": "states of responses"}),
    (
        "Explained variance",
        "share",
        {"critic/explained_variance": "critic", "prm/explained_variance": "reward model, held-out problems"},
    ),
    ("Gradient norm, before clipping", "norm", {"optim/grad_norm": "policy", "critic/grad_norm": "critic"}),
)
PREFIXES = (("Generated tokens by purpose", "tokens", "tokens/"), ("Seconds by phase", "seconds", "seconds/"))
ITERATION = "iteration"
MAX_NAMED = 5  # damaged files that are named one by one


def run_section(run: Mapping[str, Any]) -> dict[str, Any]:
    recipe, metrics, timings = run["recipe"], run["metrics"], run["timings"]
    return {
        "kind": "Run",
        "title": run["name"],
        "text": "" if metrics else "No iteration is done yet.",
        "facts": facts(run),
        "warnings": warnings(metrics, run["rollouts"]["damaged"]),
        "accuracy": accuracy(recipe, metrics),
        "charts": curves(metrics, timings),
        "tables": {},
        "recipe": run["recipe_text"],
        "environment": run["environment"],
        "inspector": inspector(method_of(recipe), metrics, run["rollouts"]),
    }


def before_and_after(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a quickstart: SFT, then VinePPO."""
    names = {"sft": "after SFT", "vineppo": "after VinePPO"}
    scores = [
        score(name, result[key]["pass@1"], result[key]["ci95"], result[key]["num_problems"])
        for key, name in names.items()
        if key in result
    ]
    return {
        "kind": "Overview",
        "title": "Quickstart",
        "text": "A tiny Llama learns chains of arithmetic: first from worked solutions (SFT), then from its own "
        "answers with measured credit (VinePPO).",
        "accuracy": scores,
        "facts": {
            "seed": str(result.get("seed", "")),
            "time": seconds(result.get("seconds", {}).get("total", 0)),
            "device": result.get("device", ""),
        },
    }


def method_of(recipe: Mapping[str, Any]) -> str:
    loop = next((method.Recipe.title for section, method in METHODS.items() if section in recipe), None)
    credit = str(recipe.get("credit", {}).get("name", ""))
    return loop or ESTIMATORS.get(credit, credit)


def facts(run: Mapping[str, Any]) -> dict[str, str]:
    recipe, metrics, timings = run["recipe"], run["metrics"], run["timings"]
    model, task = recipe.get("model", {}), recipe.get("task", {})
    loop = recipe.get("train", recipe.get("restem", {}))
    done = metrics[-1][ITERATION] if metrics else 0
    spent = sum(value for line in timings for key, value in line.items() if key.startswith("seconds/"))
    tokens = sum(value or 0 for line in metrics for key, value in line.items() if key.startswith("tokens/"))
    return {
        "recipe": str(recipe.get("name", "")),
        "method": method_of(recipe),
        "model": str(model.get("name") or "from scratch: " + sizes(model.get("from_scratch", {}))),
        "task": ", ".join(str(task[key]) for key in ("name", "path", "config") if task.get(key)),
        "seed": str(recipe.get("seed", 0)),
        "iterations": f"{done:,} of {loop['num_iterations']:,}" if "num_iterations" in loop else f"{done:,}",
        "time": seconds(spent),
        "generated tokens": f"{tokens:,}",
        "device": str(run["environment"].get("device", "")),
    }


def sizes(shape: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('num_').replace('_', ' ')} {value}" for key, value in shape.items())


def seconds(number: float) -> str:
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def accuracy(recipe: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first evaluation and the last one."""
    evaluated = [line for line in metrics if line.get("eval/pass@1") is not None]
    unit = "step" if method_of(recipe) in ("SFT", "DPO+") else "iteration"
    ends = evaluated if len(evaluated) < 2 else [evaluated[0], evaluated[-1]]
    return [
        score(
            f"{unit} {line[ITERATION]}",
            line["eval/pass@1"],
            [line.get("eval/pass@1_low"), line.get("eval/pass@1_high")],
            line.get("eval/num_problems"),
        )
        for line in ends
    ]


def score(name: str, value: float, ci95: Sequence[float | None] | None, num_problems: int | None) -> dict[str, Any]:
    low, high = ci95 or (None, None)
    return {"name": name, "value": value, "low": low, "high": high, "num_problems": num_problems}


def warnings(metrics: Sequence[Mapping[str, Any]], damaged: Sequence[str]) -> list[str]:
    def total(*keys: str) -> int:
        return round(sum(line.get(key) or 0 for line in metrics for key in keys))

    found = []
    if skipped := total("optim/num_skipped_steps", "policy/num_skipped_steps", "critic/num_skipped_steps"):
        found.append(f"{skipped:,} optimizer steps were skipped: loss or gradient not finite, or too far a policy.")
    if total("metrics/num_not_finite"):
        keys = sorted({key for line in metrics for key, value in line.items() if value is None})
        found.append(f"Not a finite number in at least one iteration: {', '.join(keys)}.")
    responses, truncated = total("rollouts/num"), total("rollouts/num_truncated")
    if truncated > 0.01 * responses:
        found.append(f"{share(truncated, responses)} of the responses reached their token limit and got reward 0.")
    uncut = total("rollouts/num_one_segment")
    if uncut > 0.5 * responses:
        found.append(f"{share(uncut, responses)} of the responses are one segment: there are no steps to tell apart.")
    if looking := total("rollouts/num_looking_ahead"):
        found.append(
            f"{share(looking, responses)} of the responses are cut where only what follows decides: credit by segment "
            "is biased."
        )
    for verdict, what in (("timeout", "ran into the grader's time limit"), ("crashed", "crashed their grader")):
        if failed := total(f"grading/num_{verdict}"):
            found.append(f"{failed:,} answers {what}; they count as wrong.")
    if too_long := total("rollouts/num_prompts_too_long"):
        found.append(f"{too_long:,} training prompts were too long and skipped.")
    if too_long := total("sft/num_too_long"):
        found.append(f"{too_long:,} worked solutions were too long and skipped.")
    if too_long := max((line.get("eval/num_prompts_too_long") or 0 for line in metrics), default=0):
        found.append(f"{too_long:,} evaluation prompts were too long.")
    found += [f"Left out, as it is damaged: {place}." for place in damaged[:MAX_NAMED]]
    if len(damaged) > MAX_NAMED:
        found.append(f"{len(damaged) - MAX_NAMED:,} more files of rollouts are damaged and left out.")
    return found


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"


def curves(metrics: Sequence[Mapping[str, Any]], timings: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    charts = {"Accuracy": accuracy_curve(metrics)}
    for title, unit, names in CURVES:
        charts[title] = curve(title, unit, metrics, names)
    for (title, unit, prefix), log in zip(PREFIXES, (metrics, timings), strict=True):
        keys = dict.fromkeys(key for line in log for key in line if key.startswith(prefix))
        charts[title] = curve(title, unit, log, {key: key.removeprefix(prefix) for key in keys})
    return {title: chart for title, chart in charts.items() if chart}


def accuracy_curve(metrics: Sequence[Mapping[str, Any]]) -> Chart | None:
    rows = [
        {
            ITERATION: line[ITERATION],
            "accuracy": line["eval/pass@1"],
            "low": line.get("eval/pass@1_low"),
            "high": line.get("eval/pass@1_high"),
        }
        for line in metrics
        if line.get("eval/pass@1") is not None
    ]
    if len(rows) < 2:
        return None
    return whole_numbers(lines("Accuracy on held-out problems", rows, x=ITERATION, y="accuracy", ci=True))


def curve(title: str, unit: str, log: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Chart | None:
    """A line per key that the log has; one point is no line."""
    by_key = [
        [{ITERATION: line[ITERATION], unit: line[key], "line": name} for line in log if line.get(key) is not None]
        for key, name in names.items()
    ]
    drawn = [rows for rows in by_key if len(rows) > 1]
    if not drawn:
        return None
    by = "line" if len(drawn) > 1 else None
    return whole_numbers(lines(title, [row for rows in drawn for row in rows], x=ITERATION, y=unit, by=by))


def whole_numbers(chart: Chart) -> Chart:
    """There is no iteration 1.5."""
    chart["encoding"]["x"]["axis"] = {"tickMinStep": 1, "format": ",d"}
    return chart


def inspector(method: str, metrics: Sequence[Mapping[str, Any]], rollouts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Its rollouts, and the two charts that the page fills with whichever rollout is looked at."""
    if not rollouts["shown"]:
        return None
    saved = set(rollouts["iterations"])
    num_saved = sum(line.get("rollouts/num", 0) for line in metrics if line[ITERATION] in saved)
    return {
        "method": method,
        "note": NOTES.get(method, ""),
        "rollouts": rollouts["shown"],
        "num_saved": max(num_saved, len(rollouts["shown"])),
        "value_chart": lines("Value along the response", [], x="segments done", y="V"),
        "credit_chart": bars("Advantage of each segment", [], x="segment", y="advantage, in reward", by="method"),
    }
