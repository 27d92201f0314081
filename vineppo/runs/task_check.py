"""Whether a task keeps the promises of vineppo/protocols.py, found before the first sample.

Each check says in a sentence what it found, or raises UserError with the class, the method and what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vineppo.config import unusable
from vineppo.grading import Grader
from vineppo.grading.finding import Finding, Reply
from vineppo.parts import own_code
from vineppo.protocols import HasSymbols, TakesTurns, Task
from vineppo.runs.recipe import Recipe, SamplingRecipe
from vineppo.segments import are_cuts, looks_ahead
from vineppo.transcript import Transcript, actions_of, turns_of
from vineppo.types import Problem, UserError

MAX_CHARS = 600
"""Of a text whose every beginning is cut."""


TEXTS = ("id", "prompt", "answer", "solution")
NUM_PROBLEMS = 16
FEW = 4
"""Where a recipe does not say how many distinct ones it will ask for."""


class TaskCheck:
    def __init__(self, recipe: Recipe, task: Task, grader: Grader):
        self.task, self.grader, self.split = task, grader, recipe.evaluation.split
        sampling = recipe.sampling if isinstance(recipe, SamplingRecipe) else None
        self.num_problems = min(NUM_PROBLEMS, sampling.prompts_per_iteration if sampling else FEW)
        self.name = type(task).__name__
        from_scratch = recipe.model.from_scratch is not None
        self.symbols = pattern_of(task.symbols) if from_scratch and isinstance(task, HasSymbols) else None

    def run(self, *, look_ahead: bool = True) -> Iterator[str]:
        """All of them. Worked solutions are those of the split that the recipe evaluates on: a training problem's may
        be anybody's, mistakes included. A run looks at the cuts of all its responses; `look_ahead` does so here."""
        if type(self.task.isolate) is not bool:
            raise self.wrong("isolate", f"must be True or False, got {describe(self.task.isolate)}")
        trained = self.sampled()
        yield f"sample: {len(trained)} distinct training problems, the same ones again with the same seed"
        held_out = self.held_out(trained)
        yield f"split: {len(held_out)} problems in {self.split!r}"
        problems = held_out[: self.num_problems]
        solved = [problem for problem in problems if problem.solution]
        texts = ["", *(turn[:MAX_CHARS] for problem in solved for turn in actions_of(problem.solution))]
        yield f"segment: {self.cut(texts, len(solved))}"
        if look_ahead:
            yield f"segment: {self.causal(texts)}"
        if isinstance(self.task, TakesTurns):
            yield f"reply: {self.replied(problems, solved)}"
        elif spoken := [problem.id for problem in solved if len(turns_of(problem.solution)) > 1]:
            raise self.wrong("reply", f"is missing, and the worked solution of problem {spoken[0]} has several turns")
        yield f"grade: {self.graded(problems, solved)}"
        yield f"answer: {self.answered(solved)}"

    def sampled(self) -> list[Problem]:
        problems = self.problems(self.call("sample", self.num_problems, seed=0), "sample")
        distinct = len({problem.id for problem in problems})
        if distinct != self.num_problems:
            raise self.wrong("sample", f"{self.num_problems} problems with ids of their own asked for, got {distinct}")
        again = self.problems(self.call("sample", self.num_problems, seed=0), "sample")
        if texts_of(again) != texts_of(problems):
            raise self.wrong("sample", "other problems at the second call with the same seed; draw by `seed` alone")
        return problems

    def held_out(self, trained: Sequence[Problem]) -> list[Problem]:
        problems = self.problems(self.call("split", self.split), "split")
        ids = {problem.id for problem in problems}
        if not problems or len(ids) < len(problems):
            raise self.wrong("split", f"{len(ids)} distinct ids in the {len(problems)} problems of {self.split!r}")
        if self.split != "train" and (shared := sorted(ids & {problem.id for problem in trained})):
            raise self.wrong("split", f"problem {shared[0]} is in {self.split!r}, and sample() gives it for training")
        return problems

    def problems(self, found: Any, method: str) -> list[Problem]:
        if not isinstance(found, list) or not all(isinstance(problem, Problem) for problem in found):
            raise self.wrong(method, f"must give a list of Problem, got {describe(found)}")
        for problem in found:
            texts = dict(zip(TEXTS, texts_of([problem])[0], strict=True))
            no_text = [f"{name} = {text!r}" for name, text in texts.items() if not isinstance(text, str)]
            if no_text or not problem.prompt:
                raise self.wrong(method, f"problem {problem.id}: {', '.join(no_text) or 'the prompt is empty'}")
            if bad := [name for name, text in texts.items() if unusable(text)]:
                raise self.wrong(method, f"problem {problem.id!r}: half a character or a NUL in its {bad[0]}")
            if self.symbols and (left := self.symbols.sub("", problem.prompt + problem.solution)):
                raise self.wrong("symbols", f"problem {problem.id}: none of them is {left[:20]!r}")
        return found

    def cut(self, texts: Sequence[str], num_solved: int) -> str:
        num_segments = 0
        for text in texts:
            cuts = self.call("segment", text)
            if not isinstance(cuts, list) or not all(type(cut) is int for cut in cuts) or not are_cuts(cuts, text):
                raise self.wrong(
                    "segment", f"must give increasing positions in (0, {len(text)}] for {text!r}, got {describe(cuts)}"
                )
            num_segments += len({*cuts, len(text)} - {0})
        return f"{num_segments / max(1, num_solved):.1f} segments a worked solution"

    def causal(self, texts: Sequence[str]) -> str:
        for text in texts:
            for n in range(len(text)):
                if looks_ahead(self.cuts, text, n):
                    raise self.wrong("segment", f"{seen_ahead(self.cuts, text, n)}; decide by what stands before a cut")
        return "no cut depends on what follows it"

    def cuts(self, text: str) -> list[int]:
        return self.call("segment", text)

    def replied(self, problems: Sequence[Problem], solved: Sequence[Problem]) -> str:
        """Worked solutions hold what the environment says to them, it is over at their end, and replies repeat."""
        expected: list[tuple[Problem, Transcript, str | None]] = []
        for problem in solved:
            turns = turns_of(problem.solution)
            for n in range(1, len(turns) + 1, 2):
                expected.append((problem, Transcript.of(turns[:n]), (*turns, None)[n]))
        nothing = [(problem, Transcript.of([""])) for problem in problems]
        self.answers(nothing)
        pairs = [(problem, said) for problem, said, _ in expected]
        for (problem, said, reply), found in zip(expected, self.answers(pairs), strict=True):
            if found != reply:
                raise self.wrong(
                    "reply",
                    f"problem {problem.id}: {show(found)} to {said.turns[-1]!r} of its own solution, "
                    f"which goes on with {show(reply)}",
                )
        return f"{len(pairs)} turns of worked solutions are replied to as they say"

    def answers(self, pairs: Sequence[tuple[Problem, str]]) -> list[str | None]:
        """Of the environment."""
        first, again = self.grader.look(pairs, "reply"), self.grader.look(pairs, "reply")
        for (problem, said), found, other in zip(pairs, first, again, strict=True):
            if not isinstance(found, Reply):
                raise self.wrong(
                    "reply", f"problem {problem.id}: {found.grade.verdict} on {said[-80:]!r} {found.why}".rstrip()
                )
            if found != other:
                raise self.wrong("reply", f"problem {problem.id}: two replies to {said[-80:]!r}: {found}, {other}")
            if self.symbols and self.symbols.sub("", found.text or ""):
                raise self.wrong(
                    "reply", f"problem {problem.id}: {show(found.text)} to {said[-80:]!r} is not made of symbols"
                )
        return [found.text for found in first if isinstance(found, Reply)]

    def graded(self, problems: Sequence[Problem], solved: Sequence[Problem]) -> str:
        """The worked solution is right and earns most, nothing is not right, and a grade repeats."""
        gold = self.findings([(problem, problem.solution) for problem in solved])
        nothing = self.findings([(problem, "") for problem in problems])
        by_id = {problem.id: finding.grade for problem, finding in zip(problems, nothing, strict=True)}
        for problem, finding in zip(solved, gold, strict=True):
            grade = finding.grade
            if grade.verdict != "correct" or grade.reward <= by_id[problem.id].reward:
                raise self.wrong(
                    "grade",
                    f"problem {problem.id}: its own solution is {grade.verdict}, reward {grade.reward}; "
                    f"nothing at all has {by_id[problem.id].reward}",
                )
        right = [problem.id for problem, finding in zip(problems, nothing, strict=True) if is_correct(finding)]
        if right:
            raise self.wrong("grade", f"problem {right[0]}: an empty response is correct")
        return f"the worked solution is right in {len(gold)} of {len(problems)}, an empty response in none" + (
            "" if solved else "; no problem has a worked solution, so no right response was graded"
        )

    def findings(self, pairs: Sequence[tuple[Problem, str]]) -> list[Finding]:
        first, again = self.grader.findings(pairs), self.grader.findings(pairs)
        for (problem, text), finding, other in zip(pairs, first, again, strict=True):
            if finding.grade.verdict in ("crashed", "timeout"):
                raise self.wrong(
                    "grade", f"problem {problem.id}: {finding.grade.verdict} on {text!r} {finding.why}".rstrip()
                )
            if finding.grade != other.grade:
                raise self.wrong(
                    "grade", f"problem {problem.id}: two grades of {text!r}, {finding.grade}, {other.grade}"
                )
        return first

    def answered(self, solved: Sequence[Problem]) -> str:
        """Majority voting grades an answer against another response's."""
        answers = [self.call("answer", problem.solution) for problem in solved]
        for answer in answers:
            if not isinstance(answer, str | None):
                raise self.wrong("answer", f"must give a text or None, got {describe(answer)}")
        voted = [(replace(p, answer=a), p.solution) for p, a in zip(solved, answers, strict=True) if a is not None]
        for (problem, solution), finding in zip(voted, self.findings(voted), strict=True):
            if not is_correct(finding):
                raise self.wrong("answer", f"{problem.answer!r} of {solution!r} is no gold answer that it is right for")
        return f"{len(voted)} of {len(solved)} worked solutions have one, and it counts as theirs"

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with own_code(f"task {self.name}.{method}"):
            return getattr(self.task, method)(*args, **kwargs)

    def wrong(self, method: str, what: str) -> UserError:
        return UserError(f"task {self.name}.{method}: {what}")


def texts_of(problems: Sequence[Problem]) -> list[tuple[str, ...]]:
    return [tuple(getattr(problem, name) for name in TEXTS) for problem in problems]


def pattern_of(symbols: Sequence[str]) -> re.Pattern[str]:
    """Any of them, longest first, as the tokenizer of a model from scratch takes them."""
    return re.compile("|".join(map(re.escape, sorted(symbols, key=len, reverse=True))))


def is_correct(finding: Finding) -> bool:
    return finding.grade.verdict == "correct"


def seen_ahead(segment: Any, text: str, n: int) -> str:
    alone, together = segment(text[:n]), [cut for cut in segment(text) if cut <= n]
    return f"{text[:n]!r} is cut at {alone} alone, and at {together} where {text[n : n + 20]!r} follows"


def show(reply: str | None) -> str:
    return "the end" if reply is None else repr(reply)


def describe(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
