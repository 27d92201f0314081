"""Where MATH's solutions are cut into segments: after the displayed formulas that end a sentence, and inside formulas.

    python benchmarks/splitting.py DATA/math --out benchmarks/results/splitting.json

DATA/math holds train.jsonl and test.jsonl with a field `solution`. Counts places and cuts over all solutions.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.tasks.latex import cut_latex

MAX_SEGMENT_CHARS = 100
DISPLAY = re.compile(
    r"\\begin\{(?P<env>[^{}\n]{1,40})\}.*?\\end\{(?P=env)\}|\$\$.+?\$\$|\\\[.*?\\\]|(?P<picture>\[asy\].*?\[/asy\])"
    r"|(?P<inline>\\\(.*?\\\)|(?<!\\)\$(?:[^$\n]|\n(?![ \t]*\n))+?(?<!\\)\$)",
    re.DOTALL,
)
SENTENCE_END = re.compile(r"[.!?](?:\s|\\\\|\\end\{[^{}]*\}|\\\]|[$}])*\Z")
CAPITAL = re.compile(r"\s*(?:\$|\\\()?[A-Z]")


def count(solution: str) -> Counter[str]:
    cuts = cut_latex(solution, MAX_SEGMENT_CHARS)
    found = Counter(cuts=len(cuts), solutions=1)
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
    found["segments under 10 characters"] = sum(length < 10 for length in lengths)
    found["segments over 100 characters"] = sum(length > MAX_SEGMENT_CHARS for length in lengths)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for name in ("train.jsonl", "test.jsonl"):
        for line in (options.data / name).read_text(encoding="utf-8").splitlines():
            total += count(json.loads(line)["solution"])
    result = {**describe_machine(pick_device("cpu")), "max_segment_chars": MAX_SEGMENT_CHARS, "counts": dict(total)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
