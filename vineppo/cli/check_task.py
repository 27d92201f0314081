"""`vineppo check-task RECIPE`: whether the task keeps its promises, and three problems as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator

from vineppo.cutting import cut_response
from vineppo.framing import Framing
from vineppo.grading import Grader
from vineppo.machine.terminal import echo
from vineppo.models.loading import load_tokenizer
from vineppo.protocols import Task
from vineppo.runs.changes import last_checkpoint
from vineppo.runs.recipe import Recipe, SamplingRecipe, make_part
from vineppo.runs.setup import make_tokenizer
from vineppo.runs.task_check import TaskCheck
from vineppo.runs.template_note import announce_template
from vineppo.segments import segment_texts
from vineppo.types import Problem

NUM_SHOWN = 3


def check_task(recipe: Recipe) -> None:
    task = make_part("task", recipe.task)
    name = recipe.model.name
    tokenizer = make_tokenizer(recipe, task) if name is None else load_tokenizer(last_checkpoint(name))
    with Grader(task, recipe.grading) as grader:
        check = TaskCheck(recipe, task, grader)
        for finding in check.run():
            echo(f"ok  {finding}")
        for problem in check.sampled()[:NUM_SHOWN]:
            for line in shown(task, grader, Framing(tokenizer, recipe.chat), problem):
                echo(line)
    if note := announce_template(recipe, tokenizer):
        echo(f"\n{note}")
    if isinstance(recipe, SamplingRecipe):
        echo(f"\nA response has room for {recipe.sampling.max_new_tokens} tokens (sampling.max_new_tokens).")


def shown(task: Task, grader: Grader, framing: Framing, problem: Problem) -> Iterator[str]:
    """The prompt, its tokens decoded again, and the worked solution with a segment to a line."""
    tokenizer, prompt_ids = framing.tokenizer, framing.prompt_ids(problem)
    yield f"\n{problem.id}: a prompt of {len(prompt_ids)} tokens"
    yield tokenizer.decode(prompt_ids)
    yield f"-- the answer is {problem.answer!r}"
    if not problem.solution:
        yield "-- no worked solution"
        return
    token_ids, mask = framing.response(problem.solution)
    token_ids = token_ids[:-1]  # eos
    boundaries, _ = cut_response(task, tokenizer, token_ids, mask and mask[:-1], problem.solution, None)
    (finding,) = grader.findings([(problem, problem.solution)])
    yield (
        f"-- a worked solution of {len(token_ids)} tokens in {len(boundaries) - 1} segments: "
        f"{finding.grade.verdict}, reward {finding.grade.reward:g}"
    )
    for start, text in zip(boundaries, segment_texts(tokenizer, token_ids, boundaries), strict=False):
        yield f"{start:5} {text!r}"
