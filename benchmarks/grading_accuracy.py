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
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from vineppo.intervals import wilson
from vineppo.machine.runtime import describe_machine, pick_device
from vineppo.seeding import derive_seed
from vineppo.tasks import TASKS
from vineppo.types import Problem, Task

Case = tuple[str, str]  # (kind, answer)

Z_95 = 1.959964  # two-sided, of the normal distribution
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
DECIMAL = re.compile(r"(-?)([0-9]*)\.([0-9]+)")
FRACTION = re.compile(r"(-?)\\frac\{([0-9]+)\}\{([0-9]+)\}")
ROOT = re.compile(r"(-?)([0-9]*)\s*\\sqrt\{([0-9]+)\}")
SUM = re.compile(r"([0-9a-z^]+(?:\\sqrt\{?[0-9]+\}?|\\pi)?) ?\+ ?([0-9a-z^]*(?:\\sqrt\{?[0-9]+\}?|\\pi)?)")
PAIR = re.compile(r"([(\[])([^(),\[\]]+),([^(),\[\]]+)([)\]])")
MEMBERS = re.compile(r"-?[0-9]+(?:, ?-?[0-9]{1,2})+")
BASED = re.compile(r"([0-9]+)_\{?([0-9]+)\}?")
POLYNOMIAL = re.compile(r"-?[0-9a-z^]+(?: ?[-+] ?[0-9a-z^]+)+")
FACTORS = re.compile(r"(-?[0-9a-z]*)(\([^()]+\))(\([^()]+\))")
LINE = re.compile(r"([a-z]) = ([^=<>]*[a-z][^=<>]*)")
UNION = re.compile(r"([(\[][^()\[\]]+[)\]]) ?\\cup ?([(\[][^()\[\]]+[)\]])")
FORMULA = re.compile(r"\$([^$]+)\$|\\\[(.+?)\\\]", re.DOTALL)
WORK = re.compile(r"(?<=.)[-+*^!]|\\(?:sqrt|int|sum|cdot|times|log|sin|cos|tan|binom|lfloor|lceil)")
WORD = re.compile(r"\\text\{([A-Za-z]{3,})\}")


def right_answers(gold: str) -> Iterator[Case]:
    yield "as it is", gold
    yield "in dollars", f"${gold}$"
    yield "final point", gold.rstrip(".") + "."
    yield "display style", f"\\displaystyle {gold}"
    if r"\frac" in gold:
        yield "dfrac", gold.replace(r"\frac", r"\dfrac")
    if gold[0] in "([" and gold[-1] in ")]" and not re.search(r"\\left|[)\]].*[(\[]", gold):
        yield "left and right", f"\\left{gold[:-1]}\\right{gold[-1]}"
    if INTEGER.fullmatch(gold):
        yield from right_integers(int(gold))
    elif match := FRACTION.fullmatch(gold):
        yield from right_fractions(match[1], int(match[2]), int(match[3]))
    elif match := DECIMAL.fullmatch(gold):
        yield "a zero more", gold + "0"
        yield "as a fraction", f"{match[1]}\\frac{{{int(match[2] + match[3])}}}{{{10 ** len(match[3])}}}"
    elif match := ROOT.fullmatch(gold):
        yield "power", f"{match[1]}{match[2]}{' ' if not match[2] else ''}({match[3]})^{{1/2}}".replace(" (", "(")
        yield "name", f"x = {gold}"
    elif match := UNION.fullmatch(gold):
        yield "union the other way round", f"{match[2]} \\cup {match[1]}"
    elif match := FACTORS.fullmatch(gold):
        yield "factors the other way round", match[1] + match[3] + match[2]
    elif match := LINE.fullmatch(gold):
        yield "without the name", match[2]
        yield "sides the other way round", f"{match[2]} = {match[1]}"
    elif "pmatrix" in gold:
        yield "bmatrix", gold.replace("pmatrix", "bmatrix")
    elif POLYNOMIAL.fullmatch(gold) and re.search("[a-z]", gold):
        terms = re.findall(r"[-+]?[0-9a-z^]+", gold.replace(" ", ""))
        yield "terms the other way round", " ".join(re.sub("^(?=[0-9a-z])", "+", term) for term in terms[::-1])
    elif match := SUM.fullmatch(gold):
        if match[2]:
            yield "terms the other way round", f"{match[2]} + {match[1]}"
    elif match := PAIR.fullmatch(gold):
        yield "blanks", f"{match[1]} {match[2].strip()} ,  {match[3].strip()} {match[4]}"
    elif MEMBERS.fullmatch(gold):
        members = [member.strip() for member in gold.split(",")]
        yield "list the other way round", ", ".join(members[::-1])
        yield "list with and", ", ".join(members[:-1]) + f" \\text{{ and }} {members[-1]}"
        yield "list in braces", f"\\{{{gold}\\}}"
    elif match := BASED.fullmatch(gold):
        yield "base in braces", f"{match[1]}_{{{match[2]}}}"
    elif match := WORD.fullmatch(gold):
        yield "word without \\text", match[1]
        yield "word in other case", f"\\text{{{match[1].lower()}}}"


def right_integers(value: int) -> Iterator[Case]:
    yield "unit", f"{value} \\text{{ units}}"
    yield "bare unit", f"{value} meters"
    yield "name", f"x = {value}"
    yield "decimal", f"{value}.0"
    yield "degrees", f"{value}^\\circ"
    yield "unreduced", f"\\frac{{{3 * value}}}{{3}}" if value >= 0 else f"-\\frac{{{-3 * value}}}{{3}}"
    if abs(value) >= 1000:
        for kind, mark in (("comma", ","), ("comma in braces", "{,}"), ("thin space", r"\,"), ("comma, \\!", r",\!")):
            yield f"thousands by {kind}", f"{value:,}".replace(",", mark)


def right_fractions(sign: str, top: int, bottom: int) -> Iterator[Case]:
    yield "slash", f"{sign}{top}/{bottom}"
    yield "unreduced", f"{sign}\\frac{{{2 * top}}}{{{2 * bottom}}}"
    yield "name", f"y={sign}\\frac{{{top}}}{{{bottom}}}"
    if top > bottom and not sign:
        yield "mixed number", f"{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}"
        yield "mixed number with a slash", f"{top // bottom} {top % bottom}/{bottom}"
    if 10**6 % bottom == 0:
        value = f"{top * (10**6 // bottom):07d}"
        yield "decimal", f"{sign}{value[:-6]}.{value[-6:]}".rstrip("0").rstrip(".")


def wrong_answers(gold: str, other: str, draw: random.Random) -> Iterator[Case]:
    """`other` is the gold of another problem, and another answer."""
    yield "another problem's answer", other
    yield "two answers", f"{gold} \\text{{ or }} {other}"
    yield "chain", f"{other} = {gold}"
    yield "not", f"\\ne {gold}"
    digits = [match.start() for match in re.finditer("[0-9]", gold)]
    if digits and not re.search(r"\\phantom|cm|ft", gold):
        place = draw.choice(digits)
        yield "a digit changed", gold[:place] + str((int(gold[place]) + draw.randint(1, 9)) % 10) + gold[place + 1 :]
    value = number(gold)
    if value is not None:
        if value:
            yield "sign", gold[1:] if gold.startswith("-") else f"-{gold}"
        yield "times 100 with a per-cent sign", f"{float(100 * value)}\\%" if value else "1\\%"
        yield "work left to do: sum", f"{gold}+1-1"
        yield "work left to do: integral", f"\\int_0^{{{gold}}} dx"
        yield "work left to do: root", f"\\sqrt{{({gold})^2}}"
        yield "symbols that cancel", f"{gold}+x-x"
    if INTEGER.fullmatch(gold):
        yield "off by 1e-7", f"{gold}.0000001"
        yield "in a base", f"{gold.lstrip('-')}_9" if abs(int(gold)) > 8 else f"{int(gold) + 1}_9"
        yield "blank in the number", " ".join(gold) if len(gold.strip("-")) > 1 else f"{gold} {gold}"
        yield "number word", f"{gold} \\text{{ million}}" if gold != "0" else "1 \\text{ million}"
    elif match := FRACTION.fullmatch(gold):
        yield "upside down", f"{match[1]}\\frac{{{match[3]}}}{{{match[2]}}}" if match[2] != match[3] else "2"
        if value is not None and 10**9 % value.denominator:
            yield "rounded", f"{float(value):.7f}"
    elif match := ROOT.fullmatch(gold):
        yield "rounded", f"{int(match[1] + (match[2] or '1')) * int(match[3]) ** 0.5:.12f}"
    elif match := PAIR.fullmatch(gold):
        flipped = str.maketrans("()[]", "[]()")
        yield "other brackets", match[1].translate(flipped) + gold[1:-1] + match[4].translate(flipped)
        if match[2].strip() != match[3].strip():
            yield "pair the other way round", f"{match[1]}{match[3]},{match[2]}{match[4]}"
    elif MEMBERS.fullmatch(gold):
        yield "one of a list", gold.split(",")[-1].strip()
        yield "list and one more", f"{gold}, 99999"
        yield "list as a tuple", f"({gold})"
    elif match := BASED.fullmatch(gold):
        yield "another base", f"{match[1]}_{{{int(match[2]) + 1}}}"


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


def math_responses(problem: Problem, other: str, draw: random.Random) -> Iterator[tuple[str, str, bool]]:
    gold = problem.answer
    wrong = [*wrong_answers(gold, other, draw), *question_formulas(problem)]
    for right, cases in ((True, list(right_answers(gold))), (False, wrong)):
        for kind, answer in cases:
            before = draw.choice(
                ["Thus the answer is ", "So, adding both, we get $x$ and\n\n", "First \\boxed{17}. No: "]
            )
            yield kind, f"{before}$\\boxed{{{answer}}}${draw.choice(['', '.', '. I hope it is correct.'])}", right


def gsm8k_responses(problem: Problem, other: str, draw: random.Random) -> Iterator[tuple[str, str, bool]]:
    gold = problem.answer
    plain, other = gold.replace(",", ""), other.replace(",", "")
    digit = draw.choice([i for i, character in enumerate(plain) if character.isdigit()])
    changed = plain[:digit] + str((int(plain[digit]) + draw.randint(1, 9)) % 10) + plain[digit + 1 :]
    right = {
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
    for kind, answer in right.items():
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
        draw = random.Random(derive_seed("responses", problem.prompt))
        other = draw_other(problem, chosen, draw)
        for kind, response, right in RESPONSES[name](problem, other, draw):
            accepted = task.grade(problem, response).reward == 1
            cells["right" if right else "wrong"][f"{kind}: {'accepted' if accepted else 'refused'}"] += 1
            if accepted != right:
                mistakes.append({"kind": kind, "gold": problem.answer, "response": response[-120:]})
    return {
        "problems": len(chosen),
        "golds": len(problems),
        "golds_not_right_by_their_own_solution": unearned,
        **{f"{said}_{done}": rate(cells[said], done) for said, done in (("right", "refused"), ("wrong", "accepted"))},
        "responses": {said: dict(sorted(cell.items())) for said, cell in cells.items()},
        "mistakes": mistakes,
    }


def draw_other(problem: Problem, problems: list[Problem], draw: random.Random) -> str:
    """Another problem's gold that is certainly another answer: a number of another value, beside any kind of gold."""
    mine = number(problem.answer.replace(",", "")) if "(" not in problem.answer else None
    while True:
        other = draw.choice(problems).answer
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
