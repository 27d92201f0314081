"""Where credit is due in each variant of the embedded task: values along responses, and what segments decide.

    python benchmarks/variants.py [--out benchmarks/results/variants.json]

The policies are those that the second study starts from (study2.py), and one more for `distractors`; as many pilots as
`vineppo analyze --kind pays` takes, three samples of them. A value is the mean of the three vines of a state. About ten
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import RESULTS
from study2 import PAYS_SEEDS, VARIANTS, Study, head

from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.pays import draw_pilots
from vineppo.analysis.pilot import Pilot
from vineppo.analysis.rates import UNKNOWN
from vineppo.analysis.subject import open_subject
from vineppo.analysis.verdict import make_case, position_rows
from vineppo.intervals import bootstrap, weighted_mean
from vineppo.machine import runtime
from vineppo.machine.files import write_json

NUM_FIFTHS = 5


def describe(study: Study, name: str) -> dict[str, Any]:
    pilots: list[Pilot] = []
    with open_subject(study.policy(name)) as subject:
        for seed in PAYS_SEEDS:
            pilots += draw_pilots(subject, AnalysisConfig(split="train", vines=(1,), seed=seed))
    case = make_case(pilots, UNKNOWN, (1,))
    return {
        "num_problems": len(pilots),
        "success_rate": float(np.mean([rollout.reward for pilot in pilots for rollout in pilot.group])),
        "values": {kind: by_fifth(pilots, reward) for kind, reward in (("right", 1.0), ("wrong", 0.0))},
        "positions": position_rows(pilots, case, seed=0),
    }


def by_fifth(pilots: Sequence[Pilot], reward: float) -> dict[str, Any]:
    """Mean value of the states of responses that earned this, by how far along they are; the prompt is in the first."""
    chosen = [pilot.chain for pilot in pilots if pilot.chain.reward == reward]
    problems = [chain.problem for chain in chosen for _ in chain.values]
    values_N = np.concatenate([chain.values for chain in chosen])
    fifths_N = np.concatenate([np.arange(chain.num_segments) * NUM_FIFTHS // chain.num_segments for chain in chosen])

    def statistic(weights_N: np.ndarray) -> np.ndarray:
        places = [fifths_N == i for i in range(NUM_FIFTHS)]
        return np.array([weighted_mean(values_N[place], weights_N[place]) for place in places])

    return {"num_responses": len(chosen), "fifths": bootstrap(statistic, problems, seed=0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study2"), help="the second study's")
    parser.add_argument("--out", type=Path, default=RESULTS / "variants.json")
    args = parser.parse_args()
    runtime.prepare()
    study = Study(args.runs.resolve(), 2)
    study.run([study.sft(name) for name in VARIANTS])
    write_json(args.out, {**head(), **{name: describe(study, name) for name in VARIANTS}})


if __name__ == "__main__":
    main()
