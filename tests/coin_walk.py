"""A world whose values are known exactly: a language model that ignores its input, and a walk that it writes.

Each token is u (up), d (down) or <eos>, with fixed probabilities; a finished walk is right when it ends
above its start.
"""

from __future__ import annotations

from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vineppo.engine import ENGINES
from vineppo.environment import Environment
from vineppo.grading import Grader, GradingConfig
from vineppo.models.make import make_symbol_tokenizer
from vineppo.types import Grade, Problem, SamplingParams

P_UP, P_DOWN, P_EOS = 0.45, 0.35, 0.2
TOKENIZER = make_symbol_tokenizer("udx")


class CoinWalk:
    """Every two tokens are a segment. `partial` gives reward 1/2 to a walk that ends where it began."""

    isolate = False

    def __init__(self, *, partial: bool = False):
        self.partial = partial

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return [Problem(id=f"walk/{seed}/{i}", prompt="x", answer="up") for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(8, seed=0)

    def grade(self, problem: Problem, response: str) -> Grade:
        reward = final_reward(height(response), self.partial)
        return Grade(reward, "correct" if reward else "wrong")

    def answer(self, response: str) -> str:
        return str(height(response))

    def segment(self, response: str) -> list[int]:
        return list(range(2, len(response), 2))


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
        engine=engine_class(engine_class.Config(), make_walker(), TOKENIZER),
        task=task,
        grader=Grader(task, GradingConfig()),
        tokenizer=TOKENIZER,
        params=SamplingParams(),
        max_prompt_tokens=100,
    )
