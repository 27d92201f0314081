"""A language so small that everything about it is known: values, advantages and the policy gradient by enumeration.

The policy works on a number that begins at 1, one operation per token: "+" adds 1, "*" doubles, "-" leaves it.
"=" ends the response, which is right if the number then is the one in the prompt. After six tokens without "=" it is
cut off and wrong. So tokens differ in what they decide: "-" only takes time, "+" and "*" are forks, and once the
number is too large nothing matters any more.

A state is written as text, prompt and response: "4*+" is 3 on the way to 4. The policy is a table: the logits of the
next token depend on the prompt and the last token alone, while its values depend on all tokens.
Shapes: S rows of the table, A actions (tokens), L tokens of a response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vineppo.environment import Environment
from vineppo.grading import Grader, GradingConfig
from vineppo.types import Completion, Grade, OnComplete, Problem, Request, SamplingParams

ACTIONS = "+*-="
PROMPTS = "346"
BUDGET = 6  # tokens of a response
END = ACTIONS.index("=")
NUM_ROWS = len(PROMPTS) * len(ACTIONS)
CUTS = (1, 3, 4, 6)  # segments of one and of two tokens, in turn


def default_policy() -> np.ndarray:  # [S, A] logits
    """A policy that has learnt something: it solves "3" in half of its tries, "4" in a third, "6" in a fifth.

    Gradient ascent on the exact gradient led there from arbitrary logits; then they were rounded.
    """
    return np.array(
        [  #  +     *     -     =
            [-0.5, -0.5, -0.5, 1.5],  # "3", after +
            [2.0, -1.0, -0.5, 0.0],  # after *
            [0.0, -0.5, 0.5, 0.0],  # after -
            [-1.0, 1.5, -0.5, -3.0],  # at the start
            [0.0, 1.5, -1.0, -0.5],  # "4"
            [-0.5, -0.5, 0.0, 1.5],
            [-0.5, 0.5, 0.0, -0.5],
            [1.0, 0.0, -0.5, -2.5],
            [0.0, 3.0, -1.0, -1.0],  # "6"
            [1.5, -2.0, -1.0, 1.5],
            [-0.5, 0.5, 0.0, -0.5],
            [-0.5, 2.0, -1.0, -2.5],
        ]
    )


@dataclass(frozen=True)
class World:
    """The truth about a policy. Keys are states as text, those that are over included."""

    probs_SA: np.ndarray
    value: dict[str, float]
    """V(s) = E[R | s]; R itself where the response is over. Q(s, a) = V(s + a)."""
    reach: dict[str, float]
    """P(s | prompt)."""


def make_world(theta_SA: np.ndarray) -> World:
    world = World(softmax(theta_SA), {}, {})
    for prompt in PROMPTS:
        visit(world, prompt, 1.0)
    return world


def visit(world: World, state: str, reach: float) -> float:
    """Enters the state and all that can follow into the world; returns V(state)."""
    world.reach[state] = reach
    if is_over(state):
        value = float(is_correct(state))
    else:
        probs_A = world.probs_SA[row(state)]
        value = sum(float(p) * visit(world, state + a, reach * float(p)) for a, p in zip(ACTIONS, probs_A, strict=True))
    world.value[state] = value
    return value


def softmax(theta_SA: np.ndarray) -> np.ndarray:
    exp_SA = np.exp(theta_SA - theta_SA.max(axis=-1, keepdims=True))
    return exp_SA / exp_SA.sum(axis=-1, keepdims=True)


def is_over(state: str) -> bool:
    return state[-1] == "=" or len(state) == 1 + BUDGET


def is_correct(state: str) -> bool:
    return state[-1] == "=" and number(state[1:]) == int(state[0])


def number(response: str) -> int:
    result = 1
    for operation in response:
        result = result + 1 if operation == "+" else result * 2 if operation == "*" else result
    return result


def row(state: str) -> int:
    """Of the policy's table: the prompt, and "=" (which nothing follows) or the last operation."""
    last = ACTIONS.index(state[-1]) if len(state) > 1 else END
    return PROMPTS.index(state[0]) * len(ACTIONS) + last


def true_gradient(world: World) -> np.ndarray:  # [S, A]
    """d J / d theta = E[sum_t A(s_t, a_t) grad log pi(a_t | s_t)] (Sutton et al. 2000, theorem 1).

    For softmax logits grad log pi(a | s) = e_a - pi(s), and A has mean 0 under pi, so a state adds pi(a | s) A(s, a).
    """
    grad_SA = np.zeros_like(world.probs_SA)
    for state, reach in world.reach.items():
        if not is_over(state):
            advantages_A = np.array([world.value[state + a] - world.value[state] for a in ACTIONS])
            grad_SA[row(state)] += reach * world.probs_SA[row(state)] * advantages_A
    return grad_SA / len(PROMPTS)


def policy_gradient(world: World, responses: Sequence[tuple[str, Sequence[float], float]]) -> np.ndarray:  # [S, A]
    """sum over (final state, advantages [L], weight) of weight sum_t A_t grad log pi(a_t | s_t)."""
    tokens = [
        (row(state[: t + 1]), ACTIONS.index(state[t + 1]), weight * advantage)
        for state, advantages, weight in responses
        for t, advantage in enumerate(advantages)
    ]
    rows_N, actions_N, advantages_N = (np.array(column) for column in zip(*tokens, strict=True))
    grad_SA = np.zeros_like(world.probs_SA)
    np.add.at(grad_SA, (rows_N, actions_N), advantages_N)
    totals_S = np.bincount(rows_N, advantages_N, minlength=NUM_ROWS)
    return grad_SA - totals_S[:, None] * world.probs_SA


VOCABULARY = ACTIONS + PROMPTS


def to_text(token_ids: Sequence[int]) -> str:
    return "".join([VOCABULARY[token] for token in token_ids])


class Letters:
    """A tokenizer of one letter per token. `special` letters have no text of their own, as <eos> has none."""

    bos_token, eos_token_id = None, END

    def __init__(self, special: str = ""):
        self.special = special

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [VOCABULARY.index(letter) for letter in text]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        text = to_text(token_ids)
        return text.replace(self.special, "") if skip_special_tokens and self.special else text


class Reach:
    """Reach the number in the prompt."""

    isolate = False

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        """Every prompt equally often, so a batch has no luck of prompts in it."""
        return [Problem(f"reach/{i}", PROMPTS[i % len(PROMPTS)], PROMPTS[i % len(PROMPTS)]) for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(len(PROMPTS), seed=0)

    def grade(self, problem: Problem, response: str) -> Grade:
        right = number(response) == int(problem.answer)
        return Grade(float(right), "correct" if right else "wrong")

    def answer(self, response: str) -> str:
        return str(number(response))

    def segment(self, response: str) -> list[int]:
        return [cut for cut in CUTS if cut < len(response)]


class TableEngine:
    """Samples from a policy that is a table, with numpy; temperature 1, nothing cut off."""

    def __init__(self, theta_SA: np.ndarray):
        self.usage: Counter[str] = Counter()
        self.load_weights({"theta": theta_SA}, version=0)

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        self._probs_SA = softmax(weights["theta"])
        self._version = version

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        if params != SamplingParams():
            raise ValueError(f"the table is sampled as it is, not with {params}")

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        self.check(requests, params)
        if not requests:
            return []
        rows_N = np.array([row(to_text(request.prefix_ids)) for request in requests])
        budgets_N = np.array([request.max_new_tokens for request in requests])
        seeds_N = np.array([request.seed for request in requests], dtype=np.uint64)
        cumulative_SA = self._probs_SA.cumsum(axis=1)[:, :-1]
        actions, logprobs = [], []
        for t in range(budgets_N.max()):
            actions_N = (cumulative_SA[rows_N] <= uniforms(seeds_N, t)[:, None]).sum(axis=1)
            logprobs.append(np.log(self._probs_SA[rows_N, actions_N]))
            actions.append(actions_N)
            rows_N = rows_N // len(ACTIONS) * len(ACTIONS) + actions_N
        actions_NT, logprobs_NT = np.stack(actions, axis=1), np.stack(logprobs, axis=1)
        # draws go on after the end and are cut here, so that one response's end moves no other's draws
        ends_NT = (actions_NT == END) & (np.arange(actions_NT.shape[1]) < budgets_N[:, None])
        lengths_N = np.where(ends_NT.any(axis=1), ends_NT.argmax(axis=1) + 1, budgets_N)
        self.usage[purpose] += int(lengths_N.sum())
        return [
            Completion(tuple(tokens[:length]), tuple(probs[:length]), "eos" if ended else "length", self._version)
            for tokens, probs, length, ended in zip(
                actions_NT.tolist(), logprobs_NT.tolist(), lengths_N.tolist(), ends_NT.any(axis=1).tolist(), strict=True
            )
        ]


def uniforms(seeds_N: np.ndarray, t: int) -> np.ndarray:  # [N] in [0, 1)
    """Number t of every seed's stream: splitmix64 (Steele et al. 2014), whose streams can be entered anywhere."""
    with np.errstate(over="ignore"):
        x_N = seeds_N + np.uint64((t + 1) * 0x9E3779B97F4A7C15 % 2**64)
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x_N = x_N ^ (x_N >> np.uint64(31))
    return (x_N >> np.uint64(11)) * 2.0**-53


def make_environment(theta_SA: np.ndarray, *, special: str = "") -> Environment:
    task = Reach()
    return Environment(
        engine=TableEngine(theta_SA),
        task=task,
        grader=Grader(task, GradingConfig()),
        tokenizer=Letters(special),
        params=SamplingParams(),
        max_prompt_tokens=1,
    )
