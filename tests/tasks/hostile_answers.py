"""Answers that nobody should write, drawn by seed, and what grading them may not do.

    cd tests && python -m tasks.hostile_answers 20000

prints what happened as JSON and exits with 1 unless nothing hung, nothing ran, and no answer was right for two numbers.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from tasks.watched import Watch, WatchedMATH

from vineppo.grading import Grader, GradingConfig
from vineppo.machine.runtime import commit
from vineppo.protocols import Task
from vineppo.tasks import TASKS
from vineppo.tasks.math import MATH
from vineppo.types import Problem

NUMBERS = [
    "3", "7", "11", "-3", "0", "12", "0.5", "\\frac{7}{3}", "1024", "120", "3.0000001", "10^{10}", "0.0000001",
    "33", "37", "73", "711", "1000",
]  # fmt: skip
GOLDS = [*NUMBERS, "\\sqrt{3}", "2\\pi", "\\sqrt{2}", "3\\sqrt{7}"]
"""Numbers of different values."""
SYMBOLIC = [
    "x^2-9", "y=2x+3", "(3,7)", "3,7", "[3,7]", "\\text{east}", "11_2", "x^2+1=0", "\\overline{CD}",
]  # fmt: skip
HUGE = [
    "9" * 5000, "9^{9^{9^9}}", "10^{-10^{10}}", "99999!", "((9!)!)!", "\\sqrt[10^9]{2}", "2^{2^{2^{2^{2^2}}}}",
    "0.1^{10^9}", "\\exp(\\exp(\\exp 9))", "\\tan(10^{99})", "\\binom{10^9}{10^8}", "\\sum_{k=1}^{10^9} k",
    "\\prod_{k=1}^{10^9} k", "\\int_0^{\\infty} x^{x^x} dx", "(1+x)^{100000}", "\\frac{1}{0}", "0^0", "\\log 0",
    "e^{e^{e^{e^e}}}",
]  # fmt: skip
CODE = [
    "__import__('os').system('touch /tmp/hostile')", "\\text{__import__('os')}", "eval(1)", "lambda: 0", "{{7*7}}",
    "${7*7}", "\\input{/etc/passwd}", "\\write18{ls}", "\\immediate\\write18{id}", "().__class__.__mro__",
    "exec('x=1')", "%s%n", "\\def\\a{\\a}\\a", "open('/etc/passwd')", "\x00", "\u202e5", "\u0665", "\uff15",
    "\u00bd", "\u2460", "\U0001d7f3",
]  # fmt: skip
JOINERS = [
    " ", ",", ", ", ";", "=", "<", ">", "\\le ", "\\ne ", "\\approx ", "\\equiv ", "\\lor ", "\\land ", "\\cup ",
    "\\cap ", "\\in ", "\\to ", "\\Rightarrow ", "\\iff ", "\\pm ", "\\mp ", "+", "-", "*", "/", "^", "_", ":", "|",
    "&", "\\\\", "!", "%", "\\%", " or ", " and ", "\\text{ or }", "\\text{ and }", "\\text{ not }",
    "\\text{ or not }", "\\mid ", "\\cdot ", "\\times ", "\\div ", "\\quad ", "\\,", "\\!", "{,}", "...",
    "\\ldots ", "\\boxed{", "}\\boxed{", "$", "$$", "\n", "\n####", "\\circ ", "\\%=",
]  # fmt: skip
FORMS = [
    "{0}", "\\boxed{{{0}}}", "\\text{{{0}}}", "\\frac{{{0}}}{{1}}", "\\sqrt{{{0}}}", "\\left({0}\\right)", "[{0}]",
    "\\{{{0}\\}}", "|{0}|", "({0})^1", "{0}!", "{0}+0", "{0}\\cdot 1", "\\int_0^{{{0}}} dx",
    "\\begin{{pmatrix}}{0}\\end{{pmatrix}}", "x={0}", "{0}=x", "\\lim_{{x\\to 0}}({0})", "\\phantom{{{0}}}",
    "{0}\\text{{ cm}}", "{0}_2", "\\overline{{{0}}}", "-{0}", "--{0}", "${0}$", "\\sin({0})", "x^{{{0}}}",
    "{0}x-{0}x+{0}",
]  # fmt: skip
OPENINGS = [
    "(", "{", "[", "\\frac{", "\\sqrt{", "-", "^{", "\\{", "|", "\\left(", "\\boxed{", "x^", "1,", "\\text{", "$",
    "1+", "2^",
]  # fmt: skip


def sample_answer(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(HUGE) + rng.choice(["", "-" + rng.choice(HUGE), "+" + rng.choice(NUMBERS)])
    if kind == 1:
        return rng.choice([rng.choice(CODE), rng.choice(NUMBERS) + rng.choice(JOINERS) + rng.choice(CODE)])
    if kind == 2:
        piece = rng.choice(OPENINGS)
        depth = rng.choice([3, 30, 300, 3000])
        return (
            piece * depth + rng.choice(NUMBERS) + rng.choice(["", ")", "}", "]", "|", "\\}"]) * rng.choice([0, depth])
        )
    if kind == 3:
        return "".join(rng.choice(NUMBERS + JOINERS + CODE) for _ in range(rng.choice([2, 5, 20, 200])))
    joined = rng.choice(NUMBERS)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        joined += rng.choice(JOINERS) + rng.choice(FORMS).format(rng.choice(NUMBERS))
    return rng.choice(FORMS).format(joined)


def sample_response(name: str, rng: random.Random) -> str:
    answer = sample_answer(rng)
    if name == "gsm8k":
        return f"#### {answer}"
    return rng.choice([f"\\boxed{{{answer}}}"] * 8 + [answer, f"\\boxed {answer}"])


def judge(task: Task, responses: Sequence[str], watch: Watch) -> dict[str, Any]:
    """In this process, against golds that are numbers."""
    problems = [Problem(gold, "", gold.replace("10^{10}", "10000000000")) for gold in GOLDS]
    right_for_two, slowest = [], 0.0
    for response in responses:
        watch.on, start = True, time.process_time()
        right = [problem.answer for problem in problems if task.grade(problem, response).reward]
        watch.on, slowest = False, max(slowest, (time.process_time() - start) / len(problems))
        if len(right) > 1:
            right_for_two.append((response[:200], right))
    return {
        "answers": len(responses),
        "right_for_two": right_for_two,
        "slowest_cpu_s": slowest,
        "ran": dict(watch.seen),
    }


def grade_in_workers(responses: Sequence[str]) -> dict[str, int]:
    """Against golds of other kinds too; the pool's time limit says that one hung, a crash that something ran."""
    task = WatchedMATH(MATH.Config(path="none"))
    golds = [*SYMBOLIC, *GOLDS]
    pairs = [(Problem(gold := golds[i % len(golds)], "", gold), text) for i, text in enumerate(responses)]
    pairs += [(Problem(gold, "", gold), f"\\boxed{{{gold}}}") for gold in golds]  # behind them all, right is right
    with Grader(task, GradingConfig(num_workers=1, max_failure_share=1.0)) as grader:
        grader.grade(pairs)
        return dict(grader.verdicts)


def campaign(num_answers: int, seed: int = 0) -> dict[str, Any]:
    watch, results = Watch(), {}
    for name in ("math", "gsm8k"):
        rng = random.Random(f"{name} {seed}")
        task = TASKS[name](TASKS[name].Config(path="none"))
        getattr(task, "prepare", lambda: None)()
        responses = [sample_response(name, rng) for _ in range(num_answers)]
        golds = judge(task, responses, watch)
        results[name] = golds | ({"verdicts": grade_in_workers(responses)} if name == "math" else {})
    return results


def main() -> None:
    results = campaign(int(sys.argv[1]))
    print(json.dumps({"commit": commit(), "seed": 0} | results, indent=1))
    hung = any(results["math"]["verdicts"].get(verdict, 0) for verdict in ("timeout", "crashed"))
    sys.exit(hung or any(result["right_for_two"] or result["ran"] for result in results.values()))


if __name__ == "__main__":
    main()
