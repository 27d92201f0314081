"""Where MATH's solutions are cut into segments, by the paper's rule and by ours, which does not look ahead.

    python benchmarks/splitting.py DATA/math --out benchmarks/results/splitting.json

DATA/math holds train.jsonl and test.jsonl with a field `solution`. Counts places and cuts over all solutions. "Breaks
off": a cut behind a sentence's mark with a small letter or a closing bracket behind it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.tasks.latex import cut_latex
from vineppo.tasks.paper_segments import cut_finished_latex

MAX_SEGMENT_CHARS = 100
DISPLAY = re.compile(
    r"\\begin\{(?P<env>[^{}\n]{1,40})\}.*?\\end\{(?P=env)\}|\$\$.+?\$\$|\\\[.*?\\\]|(?P<picture>\[asy\].*?\[/asy\])"
    r"|(?P<inline>\\\(.*?\\\)|(?<!\\)\$(?:[^$\n]|\n(?![ \t]*\n))+?(?<!\\)\$)",
    re.DOTALL,
)
SENTENCE_END = re.compile(r"[.!?](?:\s|\\\\|\\end\{[^{}]*\}|\\\]|[$}])*\Z")
BREAKS_OFF = re.compile(r"[.!?](?:\s*[a-z]|[)\]\"])")
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
CAPITAL = re.compile(r"\s*(?:\$|\\\()?[A-Z]")


def count(solution: str, rule: Callable[[str, int], list[int]]) -> tuple[Counter[str], list[int]]:
    """What is counted, and the lengths of the segments with text."""
    cuts = [cut for cut in rule(solution, MAX_SEGMENT_CHARS) if cut < len(solution)]
    found = Counter(cuts=len(cuts), solutions=1)
    found["cuts behind a sentence's mark"] = sum(solution[cut - 1] in ".!?" for cut in cuts)
    found["of these break off"] = sum(bool(BREAKS_OFF.match(solution, cut - 1)) for cut in cuts)
    for formula in DISPLAY.finditer(solution):
        kind = "picture" if formula["picture"] else "inline" if formula["inline"] else "display"
        inside = [cut for cut in cuts if formula.start() < cut < formula.end()]
        found[f"cuts inside {kind} formulas"] += len(inside)
        if kind != "display":
            continue
        found["cuts inside display formulas at a row's end"] += sum(
            solution[:cut].rstrip().endswith("\\\\") for cut in inside
        )
        if SENTENCE_END.search(formula[0][-60:]) and CAPITAL.match(solution, formula.end()):
            found["display formulas that end a sentence"] += 1
            found["of these cut behind"] += any(
                not solution[formula.end() : cut].strip() for cut in cuts if cut >= formula.end()
            )
    lengths = [len(solution[a:b].strip()) for a, b in pairwise([0, *cuts, len(solution)])]
    return found, [length for length in lengths if length]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    solutions = [
        json.loads(line)["solution"]
        for name in ("train.jsonl", "test.jsonl")
        for line in (options.data / name).read_text(encoding="utf-8").splitlines()
    ]
    result: dict[str, Any] = {**describe_machine(pick_device("cpu")), "max_segment_chars": MAX_SEGMENT_CHARS}
    for name, rule in (("paper", cut_finished_latex), ("causal", cut_latex)):
        counted = [count(solution, rule) for solution in solutions]
        total = sum((found for found, _ in counted), Counter[str]())
        lengths = sorted(length for _, some in counted for length in some)
        places = {f"{share:g}": lengths[round(share * (len(lengths) - 1))] for share in QUANTILES}
        total["segments with text"] = len(lengths)
        total["segments over 100 characters"] = sum(length > MAX_SEGMENT_CHARS for length in lengths)
        result[name] = {"counts": dict(total), "length quantiles": places}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
