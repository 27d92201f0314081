"""A recipe set up: its task, tokenizer, model and grader, and the engines and environments that are made of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vineppo.engine import engine_inputs
from vineppo.environment import Environment
from vineppo.evaluate import Evaluation, EvaluationConfig, evaluate
from vineppo.grading import Grader, Judge
from vineppo.learner.policy import PolicyLearner
from vineppo.machine.runtime import pick_device
from vineppo.models import longest_prompt
from vineppo.models.loading import load_classifier, load_policy_model, load_tokenizer
from vineppo.models.make import make_critic_model, make_symbol_tokenizer, make_tiny_model
from vineppo.models.reward_model import load_reward_model
from vineppo.protocols import Engine, HasSymbols, Task
from vineppo.rollouts import SamplingConfig
from vineppo.runs.changes import check_weights, last_checkpoint
from vineppo.runs.recipe import Recipe, make_part
from vineppo.seeding import derive_seed
from vineppo.thinking import check_mark
from vineppo.types import SamplingParams, UserError


@dataclass(frozen=True)
class Setup:
    recipe: Recipe
    task: Task
    tokenizer: Any
    policy: Any  # the model that is trained, evaluated or analysed; of `vineppo prm` it is no policy
    grader: Grader

    def make_engine(self) -> Engine:
        """Samples from the policy as it is now."""
        return make_part("engine", self.recipe.engine, *engine_inputs(self.policy, self.tokenizer))

    def make_environment(self, engine: Engine, config: SamplingConfig | EvaluationConfig) -> Environment:
        """Samples as this section of the recipe says. Prompts are left out that the model's context has no room for,
        and those longer than the section's `max_prompt_tokens`."""
        longest = longest_prompt(self.policy)
        asked = config.max_prompt_tokens if isinstance(config, SamplingConfig) else None
        limit = min(asked or longest, longest)
        judge = self.judge if isinstance(config, SamplingConfig) else None
        return Environment(
            engine,
            self.task,
            self.grader,
            self.tokenizer,
            config.params(),
            limit,
            judge,
            chat=self.recipe.chat,
            thinking=self.recipe.thinking,
            limits=config.limits(),
            max_prefix_tokens=min(longest, (getattr(self.recipe.engine, "max_context", None) or sys.maxsize) - 1),
        )

    @cached_property
    def judge(self) -> Judge | None:
        """Of what is trained on; an evaluation is the task's own."""
        config = self.recipe.grading.reward_model
        if config is None:
            return None
        return Judge(load_reward_model(config, device=self.policy.device).scores, config.weight)

    def make_learner(self, reference: Any, *, sampling: SamplingParams, total_steps: int) -> PolicyLearner:
        """Of the policy, with a fresh optimizer."""
        config = self.recipe.learner
        return PolicyLearner(config, self.policy, reference, sampling=sampling, total_steps=total_steps)

    def evaluate(self, engine: Engine) -> Evaluation:
        """As the recipe's [evaluation] section says, of the weights that the engine holds."""
        config = self.recipe.evaluation
        environment = self.make_environment(engine, config)
        return evaluate(environment, config, seed=derive_seed(self.recipe.seed, "evaluation"))

    def load_initial_policy(self) -> Any:
        """The model that training started from, wherever it is now."""
        return load_policy(self.recipe, self.task)[1]


@contextmanager
def set_up(recipe: Recipe, checkpoint: Path | None = None) -> Iterator[Setup]:
    """With the recipe's model, or the one in the folder of a `checkpoint`."""
    task = make_part("task", recipe.task)
    load = load_policy if recipe.trains_policy else load_scorer
    tokenizer, policy = load(recipe, task, checkpoint)
    check_mark(recipe.thinking, tokenizer)
    with Grader(task, recipe.grading) as grader:
        yield Setup(recipe, task, tokenizer, policy, grader)


def load_policy(recipe: Recipe, task: Task, checkpoint: Path | None = None) -> tuple[Any, Any]:
    """(tokenizer, model) with fp32 master weights."""
    device = pick_device(recipe.device)
    if checkpoint:
        return load_policy_model(str(checkpoint), device=device)
    if recipe.model.name is not None:
        check_weights(recipe.model)
        return load_policy_model(last_checkpoint(recipe.model.name), device=device)
    assert recipe.model.from_scratch is not None
    tokenizer = make_tokenizer(recipe, task)
    model: Any = make_tiny_model(tokenizer, recipe.model.from_scratch, derive_seed(recipe.seed, "init"))
    return tokenizer, model.to(device)


def make_tokenizer(recipe: Recipe, task: Task) -> Any:
    """Of a model from scratch."""
    if not isinstance(task, HasSymbols):
        raise UserError(f"task {recipe.task.name} does not list its symbols, so give model.name, not from_scratch")
    symbols = task.symbols
    if not isinstance(symbols, Sequence) or not all(isinstance(text, str) and text for text in symbols):
        raise UserError(f"task {type(task).__name__}.symbols: must be a list of texts, none empty, got {symbols!r:.80}")
    return make_symbol_tokenizer(symbols)


def load_scorer(recipe: Recipe, task: Task, checkpoint: Path | None = None) -> tuple[Any, Any]:
    """(tokenizer, token classifier) of the checkpoint, or of the recipe's model with a fresh head of one logit."""
    if checkpoint:
        model = load_classifier(str(checkpoint), device=pick_device(recipe.device))
        # In memory of its own, as a new one is: where a tensor begins in a file decides the last bits of its products.
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        return load_tokenizer(str(checkpoint)), model
    tokenizer, policy = load_policy(recipe, task)
    return tokenizer, make_critic_model(policy, derive_seed(recipe.seed, "value head"))
