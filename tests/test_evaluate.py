from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from statistics import fmean
from typing import Any

import pytest

from vineppo.environment import Environment, GradedCompletion
from vineppo.evaluate import (
    EvaluationConfig,
    evaluate,
    majority_rewards,
    unbiased_pass_at_k,
)
from vineppo.grading import Grader, GradingConfig
from vineppo.intervals import interval, proportion_ci95
from vineppo.models.make import make_symbol_tokenizer
from vineppo.seeding import derive_seed
from vineppo.tasks import TASKS
from vineppo.types import Completion, Grade, Problem, SamplingParams, UserError

TOKENIZER = make_symbol_tokenizer("0123456789#/.ac? ")
EOS: Any = TOKENIZER.eos_token_id


class Fractions:
    """Every problem "p0?", "p1?" .. has the answer 1/2. A response's answer is what follows `#`."""

    isolate = False

    def __init__(self, num_problems: int):
        self.num_problems = num_problems

    def split(self, name: str) -> list[Problem]:
        assert name == "test"
        return [Problem(f"fractions/{i}", f"{i}?", "1/2") for i in range(self.num_problems)]

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        raise AssertionError("evaluation draws no training problems")

    def answer(self, response: str) -> str | None:
        _, mark, answer = response.rpartition("#")
        return answer if mark else None

    def grade(self, problem: Problem, response: str) -> Grade:
        answer = self.answer(response)
        if answer is None:
            return Grade(0.0, "unparseable")
        if Fraction(answer) == Fraction(problem.answer):
            return Grade(0.75 if "a" in response else 1.0, "correct")
        return Grade(0.0, "wrong")

    def segment(self, response: str) -> list[int]:
        return []


class Script:
    """Says what the table holds for the prompt and the sample's seed; a text that ends in `..` is cut off there."""

    def __init__(self, table: dict[str, list[str]], seed: int):
        self.usage: Counter[str] = Counter()
        self.num_calls = 0
        self.texts = {
            derive_seed(seed, "eval", f"fractions/{prompt[:-1]}", k): text
            for prompt, texts in table.items()
            for k, text in enumerate(texts)
        }

    def generate(self, requests, params, *, purpose, keep, on_complete=None):
        self.num_calls += 1
        completions = []
        for request in requests:
            text = self.texts[request.seed]
            ids = TOKENIZER.encode(text.removesuffix(".."))
            if not text.endswith(".."):
                ids.append(EOS)
            reason = "length" if text.endswith("..") else "eos"
            completions.append(Completion(tuple(ids), (0.0,) * len(ids), reason, 0))
            self.usage[purpose] += len(ids)
        return completions

    def check(self, requests, params):
        raise AssertionError

    def load_weights(self, weights, *, version):
        raise AssertionError


def run(*answers: list[str], max_prompt_tokens: int = 10, **config):
    """An evaluation of a policy that gives problem i the responses answers[i]."""
    task = Fractions(len(answers))
    engine = Script({f"{i}?": texts for i, texts in enumerate(answers)}, seed=7)
    with Grader(task, GradingConfig()) as grader:
        environment = Environment(engine, task, grader, TOKENIZER, SamplingParams(), max_prompt_tokens)
        evaluation = evaluate(environment, EvaluationConfig(num_samples=len(answers[0]), **config), seed=7)
    assert engine.num_calls == 1
    return evaluation


def mean(evaluation, name: str) -> float:
    return evaluation.scores[name].mean


def test_everything_is_counted_and_pass_at_1_is_the_mean_reward():
    evaluation = run(["#1/2", "#3", "#.5..", "?"], ["a#2/4", "#0.5", "#1", "#1"])
    assert mean(evaluation, "pass@1") == (1 + 0 + 0 + 0 + 0.75 + 1 + 0 + 0) / 8
    assert evaluation.num_truncated == 1
    assert evaluation.verdicts == {"correct": 3, "wrong": 3, "unparseable": 1}
    assert evaluation.num_tokens == sum(map(len, ("#1/2", "#3", "#.5", "?", "a#2/4", "#0.5", "#1", "#1"))) + 7
    assert evaluation.length_mean == evaluation.num_tokens / 8


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_answer(n):
    for num_correct in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * num_correct + [False] * (n - num_correct), k))
            assert unbiased_pass_at_k(n, num_correct, k) == pytest.approx(fmean(map(any, subsets)), abs=1e-12)


def test_only_the_k_that_were_asked_for_and_fit_are_reported():
    evaluation = run(["#1/2", "#1", "#1"], pass_at=(3, 2, 16))
    assert list(evaluation.scores) == ["pass@1", "pass@2", "pass@3", "maj@3"]
    assert mean(evaluation, "pass@2") == pytest.approx(2 / 3)
    assert mean(evaluation, "pass@3") == 1.0


def test_equal_answers_vote_together():
    assert mean(run(["#3", "#3", "#1/2", "#0.5", "#2/4"]), "maj@5") == 1.0
    assert mean(run(["#3", "#3.0", "#6/2", "#1/2", "#1/2"]), "maj@5") == 0.0


@pytest.mark.parametrize(
    ("task", "gold", "equal", "other"),
    [
        (TASKS["arithmetic"](TASKS["arithmetic"].Config()), "4", ["#### 4", "#### 4.0", "#### 8/2"], "#### 14"),
        (TASKS["gsm8k"](TASKS["gsm8k"].Config(path="-")), "1,018", ["#### 1018", "#### $1,018.00"], "#### 1,018.5"),
        (TASKS["math"](TASKS["math"].Config(path="-")), "0.5", [r"\boxed{\frac12}", r"\boxed{1/2}"], r"\boxed{x^2}"),
    ],
    ids=["arithmetic", "gsm8k", "math"],
)
def test_equal_answers_vote_together_in_every_task(task, gold, equal, other):
    """The wrong answer is seen first and as often as each way to write the right one."""
    problem = Problem("one", "", gold)
    with Grader(task, GradingConfig(num_workers=1)) as grader:
        grades = grader.grade([(problem, text) for text in (other, *equal)])
        completions = [
            GradedCompletion(Completion((), (), "eos", 0), text, grade)
            for text, grade in zip((other, *equal), grades, strict=True)
        ]
        assert [graded.grade.reward for graded in completions] == [0.0] + [1.0] * len(equal)
        assert majority_rewards(task, grader, [(problem, completions)]) == [1.0]
        assert majority_rewards(task, grader, [(problem, completions[:2])]) == [0.0]
        assert grader.verdicts["crashed"] == 0


def test_the_first_of_two_equally_frequent_answers_wins():
    assert mean(run(["#3", "#1/2", "#.5", "#3.0"]), "maj@4") == 0.0
    assert mean(run(["#.5", "#3", "#3.0", "#1/2"]), "maj@4") == 1.0


def test_who_has_no_answer_or_was_cut_off_does_not_vote():
    assert mean(run(["?", "?", "#3..", "#3..", "#1/2"]), "maj@5") == 1.0
    assert mean(run(["?", "?", "#1/2.."]), "maj@3") == 0.0


def test_problems_vote_among_themselves():
    evaluation = run(["#3", "#3", "#1/2"], ["#1/2", "#3", "#0.5"], ["#1", "#2", "#3"])
    assert mean(evaluation, "maj@3") == pytest.approx(1 / 3)


def test_long_prompts_are_counted_and_left_out():
    answers = [["#1/2"]] + [["#3"]] * 9 + [["#3"]] * 2  # problems 10 and 11 have a prompt of three characters
    evaluation = run(*answers, max_prompt_tokens=2)
    assert (evaluation.num_problems, evaluation.num_prompts_too_long) == (10, 2)
    assert mean(evaluation, "pass@1") == 0.1
    with pytest.raises(UserError, match="all 12 prompts are too long"):
        run(*answers, max_prompt_tokens=1)


def test_the_text_ends_at_the_first_stop_string():
    assert mean(run(["#1/2??#3?"], stop=("??",)), "pass@1") == 1.0


def test_what_is_written_holds_every_number():
    evaluation = run(["#1/2", "#1"], ["#1", "#1"])
    written, metrics = evaluation.to_json(), evaluation.metrics()
    assert written["pass@1"] == metrics["eval/pass@1"] == 0.25
    assert written["ci95"] == [metrics["eval/pass@1_low"], metrics["eval/pass@1_high"]]
    assert written["maj@2"] == metrics["eval/maj@2"] == 0.5
    assert written["pass@2_ci95"] == list(evaluation.scores["pass@2"].ci95 or ())


def test_rewards_that_are_no_proportion_are_evaluated_too(monkeypatch):
    """As a task may give them: 3 for a correct answer and -1 for a wrong one."""
    grade = Fractions.grade
    rewards = {1.0: 3.0, 0.0: -1.0}
    monkeypatch.setattr(Fractions, "grade", lambda *args: replace(found := grade(*args), reward=rewards[found.reward]))
    evaluation = run(["#1/2", "#1/2"], ["#1", "#1/2"], ["#1", "#1"])
    written, metrics = evaluation.to_json(), evaluation.metrics()
    assert written["pass@1"] == 1.0
    assert written["ci95"] == interval([3.0, 1.0, -1.0])["ci95"]
    assert written["ci95"] == [metrics["eval/pass@1_low"], metrics["eval/pass@1_high"]]
    assert written["pass@2_ci95"] == list(proportion_ci95([1.0, 1.0, 0.0]))
    alone = run(["#1/2"])
    assert (alone.to_json()["pass@1"], alone.to_json()["ci95"]) == (3.0, None)
    assert "eval/pass@1_low" not in alone.metrics()


def test_named_rewards_are_evaluated_where_there_are_any(monkeypatch):
    grade = Fractions.grade
    assert "named_rewards" not in run(["#1/2"]).to_json()
    monkeypatch.setattr(Fractions, "grade", lambda *args: replace(grade(*args), named_rewards={"length": len(args[2])}))
    evaluation = run(["#1/2", "#1"], ["#1..", "?"])
    assert evaluation.to_json()["named_rewards"] == {"length": (4 + 2 + 0 + 1) / 4}
    assert evaluation.metrics()["eval/named_length"] == 7 / 4


def test_a_k_below_1_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        EvaluationConfig(pass_at=(0, 1))
