"""Accuracy of trained policies at other sampling temperatures than they were trained at."""

from __future__ import annotations

from collections.abc import Sequence

from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.result import Result, plot
from vineppo.analysis.subject import RunCheckpoint, last_checkpoints, open_subject
from vineppo.evaluate import evaluate
from vineppo.machine.tables import Row
from vineppo.report.charts import lines
from vineppo.seeding import derive_seed
from vineppo.types import UserError

TITLE = "Accuracy by sampling temperature"
TEXT = (
    "pass@1 on problems of the split, one sample each, of every checkpoint at several temperatures; 0 is greedy. The "
    "rest of sampling (top_p, top_k, token limit) is that of the run's evaluations. Intervals: 95 %, over "
    "problems, or over seeds in the chart where there are several runs of a method."
)


def analyze(checkpoints: Sequence[RunCheckpoint], config: AnalysisConfig) -> Result:
    if config.split == "train":
        raise UserError('temperature: evaluates on a fixed split; choose split="test" or "validation"')
    rows: list[Row] = []
    for checkpoint in checkpoints:
        with open_subject(checkpoint) as subject:
            for temperature in config.temperatures:
                asked = checkpoint.recipe.evaluation.model_copy(
                    update={
                        "split": config.split,
                        "num_problems": config.num_problems,
                        "num_samples": 1,
                        "temperature": temperature,
                        "pass_at": (1,),
                    }
                )
                found = evaluate(subject.environment, asked, seed=derive_seed(config.seed, "temperature"))
                score = found.scores["pass@1"]
                low, high = score.ci95 or (None, None)
                where = {**checkpoint.header, "temperature": temperature}
                rows.append({**where, "pass@1": score.mean, "low": low, "high": high})
    chart = plot(
        lines,
        "Accuracy by sampling temperature, last checkpoints",
        last_checkpoints(rows, checkpoints),
        by=("method", "temperature"),
        x="temperature",
        y="pass@1",
        colour_by="method",
    )
    return Result("temperature", TITLE, TEXT, {"accuracy": rows}, {"accuracy": chart})
