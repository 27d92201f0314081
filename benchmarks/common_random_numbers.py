"""Common random numbers between neighbouring states, as TRPO's vine has them, against letting one vine serve both.

    python benchmarks/common_random_numbers.py --out benchmarks/results/common-random-numbers.json

A segment's credit is V^_{j+1} - V^_j. Two vines that share their noise, one token position after the other, may end
alike, which would take noise off the difference. From every two neighbouring states of some responses NUM_DRAWS pairs
of vines are sampled with common noise. That gives all three variances of the difference for one vine per state:

    independent  sigma_j^2 + sigma_{j+1}^2                     c_j + c_{j+1} tokens
    common       the same - 2 cov(R_j, R_{j+1})                the same tokens
    pooled       a vine of s_j that runs through s_{j+1} serves both, the difference is then 0; else as independent,
                 and only then s_{j+1} has a vine of its own    c_j + P(does not run through) c_{j+1}

Worlds of `vineppo exact`, and the quickstart's task with its policy after SFT, which is trained first (a minute).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vineppo.cli.quickstart import SFT
from vineppo.exact.world import World
from vineppo.exact.worlds import find_world
from vineppo.framing import encode_prompt
from vineppo.methods.run import run_recipe
from vineppo.methods.sft import SFTRecipe
from vineppo.models.loading import load_policy_model
from vineppo.runs.recipe import make_recipe
from vineppo.segments import cut_lines, decode_pieces, token_boundaries
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from vineppo.types import Problem

WORLDS = ("repair-8", "repair-late-16", "fatal-8")
NUM_RESPONSES, NUM_PROBLEMS, NUM_DRAWS = 24, 10, 64
BUDGET = 128  # tokens of a response of the task, as in the quickstart

Tokens = tuple[int, ...]


class Source(Protocol):
    """Writes responses to one prompt. K vines, T tokens of the budget, V tokens of the vocabulary."""

    budget: int
    num_tokens: int

    def go_on(self, prefix: Tokens, noise_KTV: np.ndarray) -> list[Tokens]:
        """A response for each row of Gumbel noise: after the prefix always the token of largest log-prob + noise."""
        ...

    def reward(self, response: Tokens) -> float: ...
    def boundaries(self, response: Tokens) -> Sequence[int]: ...


class OfWorld:
    def __init__(self, world: World, prompt: str):
        self.world, self.prompt, self.budget, self.num_tokens = world, prompt, world.budget + 1, len(world.actions)
        with np.errstate(divide="ignore"):
            self.logprobs_SA = np.log(world.probs_SA)

    def go_on(self, prefix: Tokens, noise_KTV: np.ndarray) -> list[Tokens]:
        return [self.one(prefix, noise_TV) for noise_TV in noise_KTV]

    def one(self, prefix: Tokens, noise_TV: np.ndarray) -> Tokens:
        tokens, node = list(prefix), self.world.node(self.prompt + self.world.text(prefix))
        while len(tokens) < self.budget:
            token = int(np.argmax(self.logprobs_SA[self.world.rows_N[node]] + noise_TV[len(tokens)]))
            tokens.append(token)
            if token == self.num_tokens - 1:
                break
            node = int(self.world.next_NA[node, token])
        return tuple(tokens)

    def reward(self, response: Tokens) -> float:
        return self.world.value(self.prompt + self.world.text(response))

    def boundaries(self, response: Tokens) -> Sequence[int]:
        return token_boundaries(pieces := decode_pieces(self.world.tokenizer, response), cut_lines("".join(pieces)))


class OfModel:
    def __init__(self, model: Any, tokenizer: Any, task: Arithmetic, problem: Problem):
        self.model, self.tokenizer, self.task, self.problem = model, tokenizer, task, problem
        self.prompt_ids = encode_prompt(tokenizer, problem.prompt)
        self.budget, self.num_tokens = BUDGET, len(tokenizer)

    @torch.no_grad()
    def go_on(self, prefix: Tokens, noise_KTV: np.ndarray) -> list[Tokens]:
        rows = torch.tensor([[*self.prompt_ids, *prefix]] * len(noise_KTV))
        found, past, inputs, is_open_K = [rows], None, rows, torch.ones(len(rows), dtype=torch.bool)
        for position in range(len(prefix), self.budget):
            output = self.model(input_ids=inputs, past_key_values=past, use_cache=True)
            past, noise_KV = output.past_key_values, torch.from_numpy(noise_KTV[:, position])
            inputs = (output.logits[:, -1, : self.num_tokens].log_softmax(-1) + noise_KV).argmax(-1, keepdim=True)
            found.append(inputs)
            is_open_K &= inputs[:, 0] != self.tokenizer.eos_token_id
            if not is_open_K.any():
                break
        return [self.until_end(row[len(self.prompt_ids) :]) for row in torch.cat(found, dim=1).tolist()]

    def until_end(self, tokens: list[int]) -> Tokens:
        eos = self.tokenizer.eos_token_id
        return tuple(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens)

    def reward(self, response: Tokens) -> float:
        if response[-1] != self.tokenizer.eos_token_id:
            return 0.0
        return self.task.grade(self.problem, self.tokenizer.decode(response, skip_special_tokens=True)).reward

    def boundaries(self, response: Tokens) -> Sequence[int]:
        pieces = decode_pieces(self.tokenizer, response)
        return token_boundaries(pieces, self.task.segment("".join(pieces)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="a checkpoint of the quickstart's SFT; without one it is trained")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {name: measure(of_world(find_world(name))) for name in WORLDS}
    with tempfile.TemporaryDirectory() as folder:
        rows["arithmetic"] = measure(of_task(options.policy or str(train(Path(folder)))))
    result = {"num_responses": NUM_RESPONSES, "num_problems": NUM_PROBLEMS, "num_draws": NUM_DRAWS, "rows": rows}
    for name, row in rows.items():
        print(name, json.dumps({key: round(value, 3) for key, value in row.items()}))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def train(folder: Path) -> Path:
    recipe = make_recipe({"name": "sft", "seed": 0, "device": "cpu", **SFT}, kind=SFTRecipe, source="benchmark")
    return run_recipe(recipe, folder / "sft", echo=print)


def of_world(world: World) -> Iterable[Source]:
    return [OfWorld(world, world.prompts[i % len(world.prompts)]) for i in range(NUM_RESPONSES)]


def of_task(policy: str) -> Iterable[Source]:
    tokenizer, model = load_policy_model(policy)
    task = Arithmetic(ArithmeticConfig())
    return [OfModel(model.eval(), tokenizer, task, problem) for problem in task.sample(NUM_PROBLEMS, seed=0)]


def measure(sources: Iterable[Source]) -> dict[str, float]:
    """Means over all pairs of neighbouring states of one response of each source."""
    rng = np.random.default_rng(0)
    pairs = []
    for source in sources:
        (response,) = source.go_on((), gumbel(rng, 1, source))
        cuts = source.boundaries(response)[:-1]
        pairs += [measure_pair(source, response[:a], response[:b], rng) for a, b in pairwise(cuts)]
    column = {name: np.array([pair[name] for pair in pairs]) for name in pairs[0]}
    independent = column["variance"].mean() * column["tokens"].mean()
    common = (column["variance"] - 2 * column["covariance"]).mean() * column["tokens"].mean()
    pooled = column["pooled_variance"].mean() * column["pooled_tokens"].mean()
    return {
        "num_pairs": len(pairs),
        "correlation": 2 * column["covariance"].mean() / column["variance"].mean(),
        "correlation_parted": 2 * column["covariance_parted"].mean() / column["variance"].mean(),
        "passing": column["passing"].mean(),
        "common_variance": float((column["variance"] - 2 * column["covariance"]).mean() / column["variance"].mean()),
        "pooled_variance": float(column["pooled_variance"].mean() / column["variance"].mean()),
        "common_at_equal_tokens": common / independent,
        "pooled_at_equal_tokens": pooled / independent,
    }


def measure_pair(source: Source, before: Tokens, after: Tokens, rng: np.random.Generator) -> dict[str, float]:
    noise_KTV = gumbel(rng, NUM_DRAWS, source)
    firsts, seconds = source.go_on(before, noise_KTV), source.go_on(after, noise_KTV)
    first, second = (np.array([source.reward(vine) for vine in vines]) for vines in (firsts, seconds))
    passes = np.array([vine[: len(after)] == after for vine in firsts])
    products = (first - first.mean()) * (second - second.mean()) * NUM_DRAWS / (NUM_DRAWS - 1)
    costs = [
        np.mean([len(vine) - len(state) for vine in vines]) for vines, state in ((firsts, before), (seconds, after))
    ]
    differences = np.where(passes, 0.0, np.roll(second, 1) - first)  # a vine of its own has noise of its own
    return {
        "variance": first.var(ddof=1) + second.var(ddof=1),
        "covariance": products.mean(),
        "covariance_parted": (products * ~passes).mean(),
        "passing": passes.mean(),
        "tokens": costs[0] + costs[1],
        "pooled_variance": differences.var(ddof=1),
        "pooled_tokens": costs[0] + (1 - passes.mean()) * costs[1],
    }


def gumbel(rng: np.random.Generator, num: int, source: Source) -> np.ndarray:  # [K, T, V]
    return rng.gumbel(size=(num, source.budget, source.num_tokens))


if __name__ == "__main__":
    main()
