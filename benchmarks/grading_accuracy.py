"""How often the graders are wrong: responses made by rule from the golds of MATH and GSM8K, whose verdict is known.

    python benchmarks/grading_accuracy.py DATA --out benchmarks/results/grading-accuracy.json

DATA holds math/ and gsm8k/, each with train.jsonl and test.jsonl. While the rules of docs/tasks.md were chosen, the
problems of one half were looked at (--half dev), by a hash of their text; the figures are of the other half. The rules
here read golds with patterns of their own, not with the graders'. Also grades every gold solution of both halves.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from vineppo.intervals import wilson
from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.protocols import Task
from vineppo.seeding import derive_seed
from vineppo.tasks import TASKS
from vineppo.types import Problem

Case = tuple[str, str]  # (kind, answer)
Match = re.Match[str]  # of the gold
Rule = Callable[[Match], Iterable[Case]]

Z_95 = 1.959964  # two-sided, of the normal distribution
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
DECIMAL = re.compile(r"(-?)([0-9]*)\.([0-9]+)")
FRACTION = re.compile(r"(-?)\\frac\{([0-9]+)\}\{([0-9]+)\}")
ROOT = re.compile(r"(-?)([0-9]*)\s*\\sqrt\{([0-9]+)\}")
SUM = re.compile(r"([0-9a-z^]+(?:\\sqrt\{?[0-9]+\}?|\\pi)?) ?\+ ?([0-9a-z^]*(?:\\sqrt\{?[0-9]+\}?|\\pi)?)")
PAIR = re.compile(r"([(\[])([^(),\[\]]+),([^(),\[\]]+)([)\]])")
MEMBERS = re.compile(r"-?[0-9]+(?:, ?-?[0-9]{1,2})+")
BASED = re.compile(r"([0-9]+)_\{?([0-9]+)\}?")
POLYNOMIAL = re.compile(r"(?=.*[a-z])-?[0-9a-z^]+(?: ?[-+] ?[0-9a-z^]+)+")
FACTORS = re.compile(r"(-?[0-9a-z]*)(\([^()]+\))(\([^()]+\))")
LINE = re.compile(r"([a-z]) = ([^=<>]*[a-z][^=<>]*)")
UNION = re.compile(r"([(\[][^()\[\]]+[)\]]) ?\\cup ?([(\[][^()\[\]]+[)\]])")
MATRIX = re.compile(".*pmatrix.*", re.DOTALL)
FORMULA = re.compile(r"\$([^$]+)\$|\\\[(.+?)\\\]", re.DOTALL)
WORK = re.compile(r"(?<=.)[-+*^!]|\\(?:sqrt|int|sum|cdot|times|log|sin|cos|tan|binom|lfloor|lceil)")
WORD = re.compile(r"\\text\{([A-Za-z]{3,})\}")


def correct_answers(gold: str) -> Iterator[Case]:
    yield "as it is", gold
    yield "in dollars", f"${gold}$"
    yield "final point", gold.rstrip(".") + "."
    yield "display style", f"\\displaystyle {gold}"
    if r"\frac" in gold:
        yield "dfrac", gold.replace(r"\frac", r"\dfrac")
    if gold[0] in "([" and gold[-1] in ")]" and not re.search(r"\\left|[)\]].*[(\[]", gold):
        yield "left and right", f"\\left{gold[:-1]}\\right{gold[-1]}"
    yield from by_form(CORRECT, gold)


def by_form(rules: dict[re.Pattern[str], Rule], gold: str) -> Iterable[Case]:
    """What the rule of the first pattern makes of the gold that it matches."""
    return next((rule(match) for pattern, rule in rules.items() if (match := pattern.fullmatch(gold))), ())


def correct_integers(gold: Match) -> Iterator[Case]:
    value = int(gold[0])
    yield "unit", f"{value} \\text{{ units}}"
    yield "bare unit", f"{value} meters"
    yield "name", f"x = {value}"
    yield "decimal", f"{value}.0"
    yield "degrees", f"{value}^\\circ"
    yield "unreduced", f"\\frac{{{3 * value}}}{{3}}" if value >= 0 else f"-\\frac{{{-3 * value}}}{{3}}"
    if abs(value) >= 1000:
        for kind, mark in (("comma", ","), ("comma in braces", "{,}"), ("thin space", r"\,"), ("comma, \\!", r",\!")):
            yield f"thousands by {kind}", f"{value:,}".replace(",", mark)


def correct_fractions(gold: Match) -> Iterator[Case]:
    sign, top, bottom = gold[1], int(gold[2]), int(gold[3])
    yield "slash", f"{sign}{top}/{bottom}"
    yield "unreduced", f"{sign}\\frac{{{2 * top}}}{{{2 * bottom}}}"
    yield "name", f"y={sign}\\frac{{{top}}}{{{bottom}}}"
    if top > bottom and not sign:
        yield "mixed number", f"{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}"
        yield "mixed number with a slash", f"{top // bottom} {top % bottom}/{bottom}"
    if 10**6 % bottom == 0:
        value = f"{top * (10**6 // bottom):07d}"
        yield "decimal", f"{sign}{value[:-6]}.{value[-6:]}".rstrip("0").rstrip(".")


def correct_decimals(gold: Match) -> Iterator[Case]:
    yield "a zero more", gold[0] + "0"
    yield "as a fraction", f"{gold[1]}\\frac{{{int(gold[2] + gold[3])}}}{{{10 ** len(gold[3])}}}"


def correct_roots(gold: Match) -> Iterator[Case]:
    yield "power", f"{gold[1]}{gold[2]}{' ' if not gold[2] else ''}({gold[3]})^{{1/2}}".replace(" (", "(")
    yield "name", f"x = {gold[0]}"


def correct_lines(gold: Match) -> Iterator[Case]:
    yield "without the name", gold[2]
    yield "sides the other way round", f"{gold[2]} = {gold[1]}"


def correct_polynomials(gold: Match) -> Iterator[Case]:
    terms = re.findall(r"[-+]?[0-9a-z^]+", gold[0].replace(" ", ""))
    yield "terms the other way round", " ".join(re.sub("^(?=[0-9a-z])", "+", term) for term in terms[::-1])


def correct_sums(gold: Match) -> Iterator[Case]:
    if gold[2]:
        yield "terms the other way round", f"{gold[2]} + {gold[1]}"


def correct_lists(gold: Match) -> Iterator[Case]:
    members = [member.strip() for member in gold[0].split(",")]
    yield "list the other way round", ", ".join(members[::-1])
    yield "list with and", ", ".join(members[:-1]) + f" \\text{{ and }} {members[-1]}"
    yield "list in braces", f"\\{{{gold[0]}\\}}"


def correct_words(gold: Match) -> Iterator[Case]:
    yield "word without \\text", gold[1]
    yield "word in other case", f"\\text{{{gold[1].lower()}}}"


CORRECT: dict[re.Pattern[str], Rule] = {
    INTEGER: correct_integers,
    FRACTION: correct_fractions,
    DECIMAL: correct_decimals,
    ROOT: correct_roots,
    UNION: lambda gold: [("union the other way round", f"{gold[2]} \\cup {gold[1]}")],
    FACTORS: lambda gold: [("factors the other way round", gold[1] + gold[3] + gold[2])],
    LINE: correct_lines,
    MATRIX: lambda gold: [("bmatrix", gold[0].replace("pmatrix", "bmatrix"))],
    POLYNOMIAL: correct_polynomials,
    SUM: correct_sums,
    PAIR: lambda gold: [("blanks", f"{gold[1]} {gold[2].strip()} ,  {gold[3].strip()} {gold[4]}")],
    MEMBERS: correct_lists,
    BASED: lambda gold: [("base in braces", f"{gold[1]}_{{{gold[2]}}}")],
    WORD: correct_words,
}


def wrong_answers(gold: str, other: str, rng: random.Random) -> Iterator[Case]:
    """`other` is the gold of another problem, and another answer."""
    yield "another problem's answer", other
    yield "two answers", f"{gold} \\text{{ or }} {other}"
    yield "chain", f"{other} = {gold}"
    yield "not", f"\\ne {gold}"
    digits = [match.start() for match in re.finditer("[0-9]", gold)]
    if digits and not re.search(r"\\phantom|cm|ft", gold):
        place = rng.choice(digits)
        yield "a digit changed", gold[:place] + str((int(gold[place]) + rng.randint(1, 9)) % 10) + gold[place + 1 :]
    value = number(gold)
    if value is not None:
        yield from wrong_numbers(gold, value)
    yield from by_form(WRONG, gold)


def wrong_numbers(gold: str, value: Fraction) -> Iterator[Case]:
    if value:
        yield "sign", gold[1:] if gold.startswith("-") else f"-{gold}"
    yield "times 100 with a per-cent sign", f"{float(100 * value)}\\%" if value else "1\\%"
    yield "work left to do: sum", f"{gold}+1-1"
    yield "work left to do: integral", f"\\int_0^{{{gold}}} dx"
    yield "work left to do: root", f"\\sqrt{{({gold})^2}}"
    yield "symbols that cancel", f"{gold}+x-x"


def wrong_integers(match: Match) -> Iterator[Case]:
    gold = match[0]
    yield "off by 1e-7", f"{gold}.0000001"
    yield "in a base", f"{gold.lstrip('-')}_9" if abs(int(gold)) > 8 else f"{int(gold) + 1}_9"
    yield "blank in the number", " ".join(gold) if len(gold.strip("-")) > 1 else f"{gold} {gold}"
    yield "number word", f"{gold} \\text{{ million}}" if gold != "0" else "1 \\text{ million}"


def wrong_fractions(gold: Match) -> Iterator[Case]:
    yield "upside down", f"{gold[1]}\\frac{{{gold[3]}}}{{{gold[2]}}}" if gold[2] != gold[3] else "2"
    value = number(gold[0])
    if value is not None and 10**9 % value.denominator:
        yield "rounded", f"{float(value):.7f}"


def wrong_roots(gold: Match) -> Iterator[Case]:
    yield "rounded", f"{int(gold[1] + (gold[2] or '1')) * int(gold[3]) ** 0.5:.12f}"


def wrong_pairs(gold: Match) -> Iterator[Case]:
    flipped = str.maketrans("()[]", "[]()")
    yield "other brackets", gold[1].translate(flipped) + gold[0][1:-1] + gold[4].translate(flipped)
    if gold[2].strip() != gold[3].strip():
        yield "pair the other way round", f"{gold[1]}{gold[3]},{gold[2]}{gold[4]}"


def wrong_lists(gold: Match) -> Iterator[Case]:
    yield "one of a list", gold[0].split(",")[-1].strip()
    yield "list and one more", f"{gold[0]}, 99999"
    yield "list as a tuple", f"({gold[0]})"


WRONG: dict[re.Pattern[str], Rule] = {
    INTEGER: wrong_integers,
    FRACTION: wrong_fractions,
    ROOT: wrong_roots,
    PAIR: wrong_pairs,
    MEMBERS: wrong_lists,
    BASED: lambda gold: [("another base", f"{gold[1]}_{{{int(gold[2]) + 1}}}")],
}


def question_formulas(problem: Problem) -> Iterator[Case]:
    """With work to do, and not in other blanks and braces what the gold is, or an equation for it."""
    bare = str.maketrans("", "", " {}\n.,")
    for groups in FORMULA.findall(problem.prompt)[:4]:
        formula = "".join(groups).strip()
        sides = [side.translate(bare).replace("dfrac", "frac") for side in (formula, *formula.split("="))]
        if WORK.search(formula) and problem.answer.translate(bare).replace("dfrac", "frac") not in sides:
            yield "the question's own formula", formula


def number(text: str) -> Fraction | None:
    if INTEGER.fullmatch(text) or DECIMAL.fullmatch(text):
        return Fraction(text)
    match = FRACTION.fullmatch(text)
    return Fraction(int(match[1] + match[2]), int(match[3])) if match and int(match[3]) else None


def math_responses(problem: Problem, other: str, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    gold = problem.answer
    wrong = [*wrong_answers(gold, other, rng), *question_formulas(problem)]
    for correct, cases in ((True, list(correct_answers(gold))), (False, wrong)):
        for kind, answer in cases:
            before = rng.choice(
                ["Thus the answer is ", "So, adding both, we get $x$ and\n\n", "First \\boxed{17}. No: "]
            )
            yield kind, f"{before}$\\boxed{{{answer}}}${rng.choice(['', '.', '. I hope it is correct.'])}", correct


def gsm8k_responses(problem: Problem, other: str, rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    gold = problem.answer
    plain, other = gold.replace(",", ""), other.replace(",", "")
    digit = rng.choice([i for i, character in enumerate(plain) if character.isdigit()])
    changed = plain[:digit] + str((int(plain[digit]) + rng.randint(1, 9)) % 10) + plain[digit + 1 :]
    correct = {
        "as it is": gold, "final point": f"{gold}.", "dollar": f"${gold}", "unit": f"{plain} apples",
        "bold": f"**{gold}**", "boxed": f"\\boxed{{{plain}}}", "name": f"x = {plain}", "per cent": f"{plain}%",
        "a zero more": f"{plain}.0" if "." not in plain else f"{plain}0", "earlier answer": f"{other}\n#### {plain}",
    }  # fmt: skip
    wrong = {
        "a digit changed": changed, "sign": f"-{plain}".replace("--", "") if Fraction(plain) else "1",
        "off by 1e-7": plain + (".0000001" if "." not in plain else "0000001"), "two answers": f"{plain} or {other}",
        "another problem's answer": other, "range": f"{plain}-{other}", "work left to do: sum": f"{plain} + 1 - 1",
        "number word": f"{plain} thousand", "chain": f"{other} = {plain}", "earlier answer": f"{plain}\n#### {other}",
        "blank in the number": " ".join(plain) if len(plain.strip("-")) > 1 else f"{plain} {plain}",
    }  # fmt: skip
    for kind, answer in correct.items():
        yield kind, f"He has 3 left.\n#### {answer}", True
    for kind, answer in wrong.items():
        yield kind, f"He has 3 left.\n#### {answer}", False
    yield "no mark", f"The answer is {plain}.", False


RESPONSES = {"math": math_responses, "gsm8k": gsm8k_responses}


def all_problems(name: str, data: Path) -> tuple[Task, list[Problem]]:
    task = TASKS[name](TASKS[name].Config(path=str(data / name), num_validation=1))
    return task, [problem for split in ("train", "validation", "test") for problem in task.split(split)]


def measure(name: str, data: Path, half: str) -> dict[str, Any]:
    task, problems = all_problems(name, data)
    unearned = [problem.id for problem in problems if task.grade(problem, problem.solution).reward < 1]
    chosen = [p for p in problems if derive_seed("half", p.prompt) % 2 == (half == "test")]
    cells: dict[str, Counter[str]] = {"right": Counter(), "wrong": Counter()}
    mistakes: list[dict[str, str]] = []
    for problem in chosen:
        rng = random.Random(derive_seed("responses", problem.prompt))
        other = sample_other(problem, chosen, rng)
        for kind, response, correct in RESPONSES[name](problem, other, rng):
            accepted = task.grade(problem, response).reward == 1
            cells["right" if correct else "wrong"][f"{kind}: {'accepted' if accepted else 'refused'}"] += 1
            if accepted != correct:
                mistakes.append({"kind": kind, "gold": problem.answer, "response": response[-120:]})
    return {
        "problems": len(chosen),
        "golds": len(problems),
        "golds_not_right_by_their_own_solution": unearned,
        **{
            f"{truth}_{done}": rate(cells[truth], done) for truth, done in (("right", "refused"), ("wrong", "accepted"))
        },
        "responses": {truth: dict(sorted(cell.items())) for truth, cell in cells.items()},
        "mistakes": mistakes,
    }


def sample_other(problem: Problem, problems: list[Problem], rng: random.Random) -> str:
    """Another problem's gold that is certainly another answer: a number of another value, beside any kind of gold."""
    mine = number(problem.answer.replace(",", "")) if "(" not in problem.answer else None
    while True:
        other = rng.choice(problems).answer
        value = number(other.replace(",", "")) if not re.search(r"[\\({]", other) else None
        if (
            value is not None
            and value != mine
            and not re.search(rf"(?<![0-9]){re.escape(other)}(?![0-9])", problem.answer)
        ):
            return other


def rate(cell: Counter[str], done: str) -> dict[str, Any]:
    count, total = sum(n for key, n in cell.items() if key.endswith(done)), cell.total()
    return {"count": count, "of": total, "share": count / total, "wilson95": wilson(count / total, total, Z_95)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--half", choices=("dev", "test"), default="test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {**describe_machine(pick_device("cpu")), "half": options.half, "seed": "from the text of each problem"}
    result |= {name: measure(name, options.data, options.half) for name in RESPONSES}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
