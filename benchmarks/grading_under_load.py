"""Whether a busy machine turns right answers into timeouts: MATH's grader beside processes that take all they get.

    python benchmarks/grading_under_load.py --out benchmarks/results/grading-under-load-cpu.json

Every answer is right and takes a few milliseconds; every grader is new, so that its workers start under load too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from vineppo.grading import Grader, GradingConfig
from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.tasks.math import MATH, MATHConfig
from vineppo.types import Problem

ANSWERS = ["\\frac{%d}{%d}", "%d/%d", "\\dfrac{%d}{%d}", "x = \\frac{%d}{%d}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--competitors", type=int, default=8)
    parser.add_argument("--graders", type=int, default=20)
    parser.add_argument("--answers", type=int, default=50, help="for each grader")
    parser.add_argument("--timeout", type=float, nargs="+", default=[GradingConfig().timeout_s, 1.0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    task = MATH(MATHConfig(path="no file is read"))
    pairs = [
        (Problem(f"half/{k}", "", "\\frac{1}{2}"), f"\\boxed{{{ANSWERS[k % len(ANSWERS)] % (k, 2 * k)}}}")
        for k in range(1, options.answers + 1)
    ]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.competitors)]
    found = {}
    try:
        for timeout_s in options.timeout:
            verdicts: Counter[str] = Counter()
            start = time.perf_counter()
            for _ in range(options.graders):
                with Grader(task, GradingConfig(timeout_s=timeout_s, max_failure_share=1.0)) as grader:
                    grader.grade(pairs)
                    verdicts += grader.verdicts
            found[timeout_s] = {**verdicts, "seconds": round(time.perf_counter() - start, 1)}
        load = os.getloadavg()[0]
    finally:
        for other in others:
            other.kill()
    of = {"competitors": options.competitors, "load": load, "graders": options.graders, "answers": len(pairs)}
    result = {**describe_machine(pick_device("cpu")), **of, "verdicts by timeout_s": found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
