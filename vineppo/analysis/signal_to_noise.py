"""How clearly an estimator's advantages tell good steps from bad ones, where the task knows which is which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vineppo.analysis.credits import credit_all
from vineppo.analysis.measured import AnalysisConfig, draw_groups
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, Subject, last_checkpoints, open_subject
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine.tables import Row
from vineppo.report.charts import bars
from vineppo.segments import segment_texts
from vineppo.types import JudgesSegments, Rollout, UserError

RIGHT, FIRST_WRONG, AFTER = "right step", "first wrong step", "after it"
SIGNS = {RIGHT: 1, FIRST_WRONG: -1, AFTER: 0}

TITLE = "Signal and noise of advantages"
TEXT = (
    "Steps of common rollouts by kind: right ones, the first wrong one, and those after it, which can change little. "
    "snr is the mean advantage of a kind over its standard deviation, per visit of such a step; right_sign the share "
    "of visits whose advantage has the sign that the kind should have, 0 counting one half. snr2_per_1000_tokens is "
    "snr times its size, times 1,000 over the tokens sampled per rollout: what the same tokens would buy if noise "
    "fell as visits rise. Advantages before whitening, a step's mean over its tokens. The charts show the first run's "
    "method. Intervals: 95 %, bootstrap over problems, or over seeds where there are several runs."
)


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    rows: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            rows += signal_rows(subject, config)
    method = checkpoints[0].recipe.name
    shown = [row for row in last_checkpoints(rows, checkpoints) if row["method"] == method and row["kind"] != AFTER]
    charts = {
        measure: plot(
            bars,
            f"{title}, {method}, last checkpoints",
            [row for row in shown if row["measure"] == measure],
            by=("estimator", "kind"),
            x="estimator",
            y="estimate",
            called=called,
            colour_by="kind",
        )
        for measure, title, called in (
            ("snr", "Signal to noise per visit", "snr"),
            ("right_sign", "Share of right signs", "share of visits"),
            ("snr2_per_1000_tokens", "Signal to noise, squared, per 1,000 sampled tokens", "snr squared"),
        )
    }
    return Result("signal_to_noise", TITLE, TEXT, {"signal": rows}, charts)


def signal_rows(subject: Subject, config: AnalysisConfig) -> list[Row]:
    task = subject.environment.task
    if not isinstance(task, JudgesSegments):
        raise UserError(f"signal_to_noise: task {subject.recipe.task.name} does not know which steps are right")  # type: ignore[attr-defined]
    groups = draw_groups(subject, config)
    rollouts = [rollout for group in groups for rollout in group]

    def texts_of(rollout: Rollout) -> list[str]:
        return segment_texts(subject.environment.tokenizer, rollout.token_ids, rollout.boundaries)

    judged = [task.judge_segments(rollout.problem, texts_of(rollout)) for rollout in rollouts]
    kinds = np.array([kind for of_rollout in judged for kind in kinds_of(of_rollout)])
    problems = np.array([rollout.problem.id for rollout in rollouts for _ in range(rollout.num_segments)])
    rows = []
    for name, credited in credit_all(subject, groups, config).items():
        advantages = np.array(
            [advantage for credits in credited.credits for credit in credits for advantage in credit.segment_advantages]
        )
        for kind, sign in SIGNS.items():
            chosen = kinds == kind
            if not chosen.any():
                continue
            header = {
                **subject.checkpoint.header,
                "estimator": name,
                "kind": kind,
                "visits": int(chosen.sum()),
                "tokens_per_rollout": credited.num_tokens,
            }
            found = signal(advantages[chosen], sign, credited.num_tokens, problems[chosen].tolist(), seed=config.seed)
            rows += [header | {"measure": measure} | numbers for measure, numbers in found.items()]
    return rows


def kinds_of(rights: Sequence[bool]) -> list[str]:
    first_wrong = rights.index(False) if False in rights else len(rights)
    return [RIGHT if j < first_wrong else FIRST_WRONG if j == first_wrong else AFTER for j in range(len(rights))]


def signal(
    advantages: np.ndarray, sign: int, num_tokens: int, problems: Sequence[str], *, seed: int
) -> dict[str, dict[str, float | None]]:
    right = (np.sign(advantages) * sign + 1) / 2 if sign else np.full(len(advantages), np.nan)

    def statistic(weights: np.ndarray) -> np.ndarray:
        mean = weighted_mean(advantages, weights)
        spread = np.sqrt(weighted_mean((advantages - mean) ** 2, weights))
        snr = mean / spread if spread > 1e-12 else np.nan
        return np.array([mean, spread, snr, snr * abs(snr) * 1000 / num_tokens, weighted_mean(right, weights)])

    names = ("mean", "std", "snr", "snr2_per_1000_tokens", "right_sign")
    return dict(zip(names, bootstrap(statistic, problems, seed=seed), strict=True))
