"""The embedded task's variants: what each changes in problems and worked solutions, and nothing besides."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from vineppo.models.make import make_symbol_tokenizer
from vineppo.tasks.arithmetic import NOTICED, NUM_FORKS, Arithmetic, ArithmeticConfig, Step
from vineppo.types import Problem, UserError

VARIANTS = ("fatal", "repair", "forks", "distractors")
FIRST = ("8 a+5 b+6 c-4\n", "5")


def make_task(variant: str, **knobs: Any) -> Arithmetic:
    return Arithmetic(ArithmeticConfig(**{"variant": variant, "num_test": 100, **knobs}))


def lines_of(solution: str) -> list[str]:
    return [f"{line}\n" for line in solution.splitlines()]


def is_slip(task: Arithmetic, line: str) -> bool:
    value, operation, result = re.fullmatch(r"(\d+) [a-z](.\d+)=(\d+)", line).groups()  # type: ignore[union-attr]
    return task.apply(operation, int(value)) != int(result)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gold_solutions_are_right_in_every_line_and_have_the_same_tokens(variant):
    task = make_task(variant)
    tokenizer = make_symbol_tokenizer(task.symbols)
    assert task.symbols == make_task("fatal").symbols
    for problem in task.split("test"):
        assert all(task.judge_segments(problem, lines_of(problem.solution)))
        assert task.grade(problem, problem.solution).reward == 1
        for text in (problem.prompt, problem.solution):
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_demonstrators_slips_are_where_a_segment_is_judged_wrong(variant):
    task = make_task(variant)
    for problem in task.sample(200, seed=0):
        *steps, _ = problem.solution.splitlines()
        rights = task.judge_segments(problem, lines_of(problem.solution))
        assert rights == [*(not is_slip(task, line) for line in steps), True]


def test_only_repair_writes_a_step_twice_and_half_of_the_slips_are():
    for variant in VARIANTS:
        task, slips, repaired = make_task(variant), 0, 0
        for problem in task.sample(1_000, seed=1):
            *steps, _ = problem.solution.splitlines()
            labels = [line.split()[1][0] for line in steps]
            redone = [a == b for a, b in zip(labels, [*labels[1:], None], strict=True)]
            assert all(is_slip(task, line) for line, again in zip(steps, redone, strict=True) if again)
            slips, repaired = slips + sum(is_slip(task, line) for line in steps), repaired + sum(redone)
        if variant == "repair":
            assert abs(repaired / slips - NOTICED) < 4 * math.sqrt(NOTICED * (1 - NOTICED) / slips)
        else:
            assert repaired == 0 < slips


def test_a_step_done_again_counts_as_it_was_done_last():
    task, other = make_task("repair"), make_task("fatal")
    problem = Problem("p", "9 a+3 b*7\n", "4")
    again = ["9 a+3=5\n", "9 a+3=2\n", "2 b*7=3\n", "2 b*7=4\n", "#### 4"]
    assert task.judge_segments(problem, again) == [False, True, False, True, True]
    assert task.grade(problem, "".join(again)).reward == 1
    assert task.judge_segments(problem, ["9 a+3=5\n", "5 b*7=5\n", "9 a+3=2\n"]) == [False, True, False]
    assert other.judge_segments(problem, again[:2]) == [False, False]


def test_forks_are_two_of_the_facts_that_a_right_solution_needs():
    task = make_task("forks")
    for problem in [*task.split("test"), *task.sample(100, seed=0)]:
        start, *words = problem.prompt.split()
        value, forks = int(start), 0
        for step in map(Step.read, words):
            forks += (step.operation, value) in task._slips
            value = task.apply(step.operation, value)
        assert forks == NUM_FORKS
        assert str(value) == problem.answer


def test_what_comes_before_a_distractors_end_does_not_matter():
    """The problem that begins where the chain starts anew has the same answer and the same last lines."""
    task, places = make_task("distractors"), set()
    for problem in task.split("test"):
        start, *words = problem.prompt.split()
        steps = list(map(Step.read, words))
        assert [start, *map(str, steps)] == [start, *words]
        (anew,) = [i for i, step in enumerate(steps) if step.digit is not None]
        rest = " ".join((str(steps[anew].digit), str(steps[anew]._replace(digit=None)), *words[anew + 1 :])) + "\n"
        lines = lines_of(problem.solution)
        assert all(task.judge_segments(Problem("p", rest, problem.answer), lines[anew:]))
        places.add(anew / len(steps))
    assert 0 < min(places) < 0.2 < 0.8 < max(places) < 1


def test_forks_that_cannot_be_drawn_are_an_error_before_anything_is():
    with pytest.raises(UserError, match=r"slip_share = 0.0 leaves no unreliable operation at 0"):
        make_task("forks", slip_share=0.0)
    with pytest.raises(UserError, match=r"slip_share = 1.0 leaves no reliable operation at 0"):
        make_task("forks", slip_share=1.0)
    with pytest.raises(ValidationError, match="num_steps must begin there or higher"):
        make_task("forks", num_steps=(1, 4))


def test_the_fatal_variant_draws_what_it_always_drew():
    """Runs and figures of before stand on these problems."""
    problem = Arithmetic(ArithmeticConfig(num_steps=(3, 3))).sample(1, seed=0)[0]
    assert (problem.prompt, problem.answer) == FIRST
