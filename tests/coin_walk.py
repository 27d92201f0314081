"""A world whose values are known exactly: a language model that ignores its input, and a walk that it writes.

Each token is u (up), d (down) or <eos>, with fixed probabilities; a finished walk is right when it ends
above its start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vineppo.config import Named
from vineppo.engine import ENGINES, engine_inputs
from vineppo.environment import Environment
from vineppo.grading import Grader, GradingConfig
from vineppo.methods import kind_of
from vineppo.models.make import make_symbol_tokenizer
from vineppo.parts import load_part
from vineppo.runs.metrics import MetricsLog, Sink
from vineppo.runs.recipe import make_recipe
from vineppo.runs.session import Session
from vineppo.runs.setup import Setup
from vineppo.runs.shutdown import Shutdown
from vineppo.types import Grade, Problem, SamplingParams

P_UP, P_DOWN, P_EOS = 0.45, 0.35, 0.2
TOKENIZER = make_symbol_tokenizer("udx")


SPLIT = 1 << 40
"""The seed of problems that no seed of training draws."""


class CoinWalkConfig(Named):
    name: str = "coin_walk:CoinWalk"
    partial: bool = False
    """Reward 1/2 for a walk that ends where it began."""


class CoinWalk:
    """Every two tokens are a segment."""

    Config = CoinWalkConfig
    isolate = False

    def __init__(self, config: CoinWalkConfig | None = None, *, partial: bool = False):
        self.partial = config.partial if config else partial

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return [Problem(id=f"walk/{seed}/{i}", prompt="x", answer="up") for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(8, seed=SPLIT)

    def grade(self, problem: Problem, response: str) -> Grade:
        reward = final_reward(height(response), self.partial)
        return Grade(reward, "correct" if reward else "wrong")

    def answer(self, response: str) -> str:
        return str(height(response))

    def segment(self, response: str) -> list[int]:
        return list(range(2, len(response) + 1, 2))


def height(text: str) -> int:
    return text.count("u") - text.count("d")


def final_reward(height: int, partial: bool) -> float:
    return 1.0 if height > 0 else 0.5 if partial and height == 0 else 0.0


@cache
def exact_value(height: int, budget: int, partial: bool = False) -> float:
    """Of a walk at `height` with `budget` tokens left; one that does not end within its budget has reward 0."""
    if budget == 0:
        return 0.0
    return (
        P_EOS * final_reward(height, partial)
        + P_UP * exact_value(height + 1, budget - 1, partial)
        + P_DOWN * exact_value(height - 1, budget - 1, partial)
    )


def make_walker() -> LlamaForCausalLM:
    """Layers that add nothing to one shared embedding: the logits are the same in every state."""
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    probabilities = torch.full((len(TOKENIZER),), 1e-12)
    for token, probability in (("u", P_UP), ("d", P_DOWN), ("<eos>", P_EOS)):
        probabilities[TOKENIZER.convert_tokens_to_ids(token)] = probability
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.copy_(probabilities.log()[:, None].expand(-1, 16) / 16)
    return model


def make_environment(task: CoinWalk | None = None, engine: str = "torch") -> Environment:
    task = task or CoinWalk()
    engine_class = ENGINES[engine]
    return Environment(
        engine=engine_class(engine_class.Config(), *engine_inputs(make_walker(), TOKENIZER)),
        task=task,
        grader=Grader(task, GradingConfig()),
        tokenizer=TOKENIZER,
        params=SamplingParams(),
        max_prompt_tokens=100,
    )


TREE: dict[str, Any] = {
    "name": "walk",
    "device": "cpu",
    "task": {"name": "coin_walk:CoinWalk"},
    "model": {"name": "none"},
    "engine": {"name": "torch", "dtype": "float32"},
    "sampling": {"prompts_per_iteration": 4, "group_size": 4, "max_new_tokens": 12},
    "learner": {"precision": "float32", "optim": {"lr": 0.05, "schedule": "constant", "warmup_ratio": 0.0}},
    "evaluation": {"num_samples": 1, "max_new_tokens": 12},
    "checkpoint": {"every": 0},
}
"""What recipes on the coin walk have in common; `open_walk` brings the model."""


@contextmanager
def open_walk(folder: Path, sections: Mapping[str, Any], *, sinks: Sequence[Sink] = ()) -> Iterator[Session]:
    """A session on the coin walk: all of it real but the model's name. TREE and `sections` are its recipe."""
    tree = {**TREE, **sections}
    load_part(tree["task"]["name"], "task.name")
    recipe = make_recipe(tree, kind=kind_of(tree), source="test")
    with MetricsLog(folder, recipe.metrics, sinks) as log, Grader(CoinWalk(), GradingConfig()) as grader:
        setup = Setup(recipe, CoinWalk(), TOKENIZER, make_walker(), grader)
        yield Session(folder, setup, None, log, Shutdown(pytest.fail), False, False, on_start=lambda total: None)
