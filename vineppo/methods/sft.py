"""Supervised fine-tuning: the policy RL starts from, taught by worked solutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from vineppo.config import Config
from vineppo.framing import Framing
from vineppo.learner.config import LearnerConfig
from vineppo.learner.objective import Counts, Loss, Sum, token_weights
from vineppo.methods.epochs import Passes, run_passes
from vineppo.models import longest_prompt
from vineppo.parts import own_code
from vineppo.protocols import Task
from vineppo.runs.recipe import Recipe
from vineppo.sample import Sample, make_sample
from vineppo.seeding import derive_seed
from vineppo.types import Problem, SamplingParams, UserError

if TYPE_CHECKING:
    from vineppo.batch import Batch
    from vineppo.models.logprobs import Readings
    from vineppo.runs.session import Session


class SFTConfig(Config):
    num_problems: int | None = Field(default=None, ge=1)
    """Training problems to learn from, drawn once; by default the whole train split."""
    num_epochs: int = Field(default=2, ge=1)
    minibatch_size: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=2048, ge=2)
    """Longer examples (prompt and solution) are skipped and counted."""


class SFTRecipe(Recipe):
    """For `vineppo sft`."""

    command, title, length, stepwise = "sft", "SFT", "sft.num_epochs", True

    sft: SFTConfig


def run_sft(recipe: SFTRecipe, session: Session) -> None:
    config, setup = recipe.sft, session.setup
    session.check_evaluations(setup.make_engine())
    framing, context = Framing(setup.tokenizer, recipe.chat), longest_prompt(setup.policy) + 1
    examples, num_too_long = make_examples(setup.task, framing, config, context=context, seed=recipe.seed)
    metrics = {"sft/num_too_long": num_too_long, "sft/num_examples": len(examples)}
    passes = Passes("sft", examples, config.minibatch_size, config.num_epochs, metrics)
    learner = session.make_learner(None, sampling=SamplingParams(), total_steps=passes.num_steps)
    run_passes(session, learner, passes, loss=nll_loss)


def nll_loss(batch: Batch, readings: Readings, config: LearnerConfig, counts: Counts) -> Loss:
    """Maximum likelihood of the responses; by default the mean over tokens."""
    loss = -(token_weights(batch, readings, config, counts) * readings.logprobs_N).sum()
    return Loss(loss, {"sft/nll": Sum(loss)})


def make_examples(
    task: Task, framing: Framing, config: SFTConfig, *, context: int, seed: int
) -> tuple[list[Sample], int]:
    """Prompt and worked solution as token ids, every turn closed by eos; and how many were longer than `max_tokens` or
    context."""
    longest = min(config.max_tokens, context)
    with own_code(f"task {type(task).__name__}, sft.num_problems = {config.num_problems}"):
        if config.num_problems is None:
            problems = task.split("train")
        else:
            problems = task.sample(config.num_problems, seed=derive_seed(seed, "sft"))
    empty = sum(not problem.solution.strip() for problem in problems)
    if empty:
        raise UserError(f"{empty} of {len(problems)} training problems have no worked solution to learn from")
    examples = [make_example(framing, problem) for problem in problems]
    kept = [e for e in examples if len(e.prompt_ids) + len(e.response_ids) <= longest]
    if not kept:
        raise UserError(
            f"all {len(examples)} training examples are longer than {longest} tokens (sft.max_tokens, context)"
        )
    return kept, len(examples) - len(kept)


def make_example(framing: Framing, problem: Problem) -> Sample:
    return make_sample(framing.prompt_ids(problem), *framing.response(problem.solution))
