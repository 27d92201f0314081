"""Worlds in which everything about a policy is known: values, advantages and the policy gradient, exactly.

The policy is a table of logits, and a text matters only through the *node* that it leads to, so dynamic programming
over nodes and tokens left gives every value, however many texts there are. `Rules` say what the nodes are; language.py
and chain.py are two kinds. A state is written as text, prompt and response; one letter is one token.
Shapes: S rows of the table, A actions (letters), N nodes, T tokens left, L tokens of a response.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

END = "="
"""The letter that ends a response. It has no text of its own, as <eos> has none."""
BREAK = "\n"
"""Ends a line."""


class Rules(Protocol):
    """What a world is made from. A node is anything hashable that says all of a text that still matters."""

    @property
    def name(self) -> str: ...
    @property
    def prompts(self) -> str:
        """One letter each."""
        ...

    @property
    def actions(self) -> str:
        """The letters of responses; the last is END."""
        ...

    @property
    def budget(self) -> int:
        """Tokens of a response; one that has not ended by then is wrong."""
        ...

    def policy(self) -> np.ndarray:
        """Logits [S, A], -inf for what never comes."""
        ...

    def start(self, prompt: str) -> Hashable: ...
    def row(self, node: Any) -> int:
        """Of the table."""
        ...

    def move(self, node: Any, action: str) -> Hashable: ...
    def is_right(self, node: Any) -> bool:
        """Whether a response that ends here has reward 1."""
        ...

    def pay(self, node: Any) -> float:
        """What a line earns that ends here, at its line break or at END, besides."""
        ...


@dataclass(frozen=True, eq=False)
class World:
    """The truth about a policy under some rules."""

    rules: Rules
    probs_SA: np.ndarray
    node_of: dict[Hashable, int]
    rows_N: np.ndarray
    next_NA: np.ndarray
    """The node after each action; the node itself after END and after what never comes."""
    pay_N: np.ndarray
    """What a line earns that ends at the node."""
    rewards_N: np.ndarray
    """What is earned at END by a response that ends at the node, its last line's pay included."""
    value_TN: np.ndarray
    """V[t, n] = E[what is still earned | node n, t tokens left]."""
    state_ids: dict[str, int] = field(default_factory=dict)
    """Of the states that were met so far."""
    _known: dict[str, Trace] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.rules.name

    @property
    def prompts(self) -> str:
        return self.rules.prompts

    @property
    def actions(self) -> str:
        return self.rules.actions

    @property
    def budget(self) -> int:
        return self.rules.budget

    @cached_property
    def tokenizer(self) -> Letters:
        return Letters(self.actions + self.prompts)

    def text(self, token_ids: Sequence[int]) -> str:
        """The state as it is written here, END included."""
        return self.tokenizer.spell(token_ids)

    def node(self, text: str) -> int:
        """Where a text of prompt and response leads to; END leads nowhere else."""
        node = self.node_of[self.rules.start(text[0])]
        for letter in text[1:]:
            node = int(self.next_NA[node, self.actions.index(letter)])
        return node

    def trace(self, text: str) -> Trace:
        """All that is known of a text of prompt and response, token by token."""
        if text not in self._known:
            self._known[text] = make_trace(self, text)
        return self._known[text]

    def values(self, text: str) -> list[float]:  # [L+1]
        """V of the whole response, what was earned included: before every token and after the last, where it is R."""
        return self.trace(text).values

    def value(self, text: str) -> float:
        return self.values(text)[-1]

    def action_values(self, node: int, tokens_left: int) -> np.ndarray:  # [A]
        """Q(s, a) of what is still earned; what never comes has Q = V(s)."""
        q_A = self.value_TN[tokens_left - 1, self.next_NA[node]]
        q_A[self.actions.index(BREAK)] += self.pay_N[node]
        q_A[-1] = self.rewards_N[node]
        return np.where(self.probs_SA[self.rows_N[node]] > 0, q_A, self.value_TN[tokens_left, node])

    @cached_property
    def responses(self) -> list[tuple[str, float]]:
        """Every text that can come, ended or cut off, with its probability; those of all prompts add up to 1."""
        open_texts = [(prompt, self.node(prompt), 1 / len(self.prompts)) for prompt in self.prompts]
        found = []
        for _ in range(self.budget):
            longer = []
            for text, node, p in open_texts:
                for a in np.flatnonzero(self.probs_SA[self.rows_N[node]]).tolist():
                    letter, reach = self.actions[a], p * float(self.probs_SA[self.rows_N[node], a])
                    if letter == END:
                        found.append((text + letter, reach))
                    else:
                        longer.append((text + letter, int(self.next_NA[node, a]), reach))
            open_texts = longer
        return found + [(text, p) for text, _, p in open_texts]

    @cached_property
    def true_gradient(self) -> np.ndarray:  # [S, A]
        """d J / d theta = E[sum_t A(s_t, a_t) grad log pi(a_t | s_t)] (Sutton et al. 2000, theorem 1).

        For softmax logits grad log pi(a | s) = e_a - pi(s), and A has mean 0 under pi, so a state adds pi(a|s) A(s, a).
        """
        grad_SA = np.zeros_like(self.probs_SA)
        reach = {(self.node(prompt)): 1 / len(self.prompts) for prompt in self.prompts}
        for left in range(self.budget, 0, -1):
            following: dict[int, float] = {}
            for node, p in reach.items():
                row = self.rows_N[node]
                grad_SA[row] += p * self.probs_SA[row] * (self.action_values(node, left) - self.value_TN[left, node])
                for a in np.flatnonzero(self.probs_SA[row, :-1]).tolist():
                    child = int(self.next_NA[node, a])
                    following[child] = following.get(child, 0.0) + p * float(self.probs_SA[row, a])
            reach = following
        return grad_SA

    def policy_gradient(self, responses: Sequence[tuple[str, Sequence[float], float]]) -> np.ndarray:  # [S, A]
        """sum over (text, advantages [L], weight) of weight sum_t A_t grad log pi(a_t | s_t)."""
        traces = [self.trace(text) for text, _, _ in responses]
        rows_N, actions_N = (np.concatenate([getattr(trace, of) for trace in traces]) for of in ("rows_L", "actions_L"))
        weighted_N = np.concatenate([weight * np.asarray(advantages) for _, advantages, weight in responses])
        shape = self.probs_SA.shape
        by_action = np.bincount(rows_N * shape[1] + actions_N, weighted_N, minlength=shape[0] * shape[1])
        totals_S = np.bincount(rows_N, weighted_N, minlength=shape[0])
        return by_action.reshape(shape) - totals_S[:, None] * self.probs_SA


@dataclass(frozen=True)
class Trace:
    """A text, token by token."""

    nodes: list[int]  # [L] before each token
    rows_L: np.ndarray
    actions_L: np.ndarray
    certain: list[bool]  # [L] whether nothing else could come
    values: list[float]  # [L+1] of the whole response
    earned: list[float]  # [L+1] before each state
    state_ids: list[int]  # [L+1] a number for every state of the world


def make_trace(world: World, text: str) -> Trace:
    node, nodes, actions = world.node(text[0]), [], [world.actions.index(letter) for letter in text[1:]]
    values, earned = [float(world.value_TN[world.budget, node])], [0.0]
    state_ids = [world.state_ids.setdefault(text[: t + 1], len(world.state_ids)) for t in range(len(text))]
    for t, action in enumerate(actions):
        nodes.append(node)
        paid = float(world.rewards_N[node] if text[t + 1] == END else (text[t + 1] == BREAK) * world.pay_N[node])
        node = int(world.next_NA[node, action])
        earned.append(earned[-1] + paid)
        to_come = 0.0 if text[t + 1] == END else float(world.value_TN[world.budget - t - 1, node])
        values.append(earned[-1] + to_come)
    rows_L, actions_L = world.rows_N[nodes], np.array(actions, dtype=int)
    certain = (world.probs_SA[rows_L, actions_L] > 1 - 1e-12).tolist()
    return Trace(nodes, rows_L, actions_L, certain, values, earned, state_ids)


def make_world(rules: Rules, theta_SA: np.ndarray | None = None) -> World:
    """All that follows from the rules and a policy, which is the rules' own unless another is given."""
    probs_SA = softmax(rules.policy() if theta_SA is None else theta_SA)
    node_of = dict.fromkeys(map(rules.start, rules.prompts), 0)
    node_of.update((node, i) for i, node in enumerate(node_of))
    moves: list[list[int]] = []
    frontier = list(node_of)
    for i, node in enumerate(frontier):  # which grows
        row = []
        for action, p in zip(rules.actions, probs_SA[rules.row(node)], strict=True):
            after = node if action == END or p == 0 else rules.move(node, action)
            if after not in node_of:
                node_of[after] = len(node_of)
                frontier.append(after)
            row.append(node_of[after])
        assert node_of[node] == i
        moves.append(row)
    rows_N, next_NA = np.array([rules.row(node) for node in node_of]), np.array(moves)
    pay_N = np.array([rules.pay(node) for node in node_of])
    rewards_N = pay_N + [float(rules.is_right(node)) for node in node_of]
    value_TN = [np.zeros(len(node_of))]
    for _ in range(rules.budget):
        after_NA = value_TN[-1][next_NA]
        after_NA[:, rules.actions.index(BREAK)] += pay_N
        after_NA[:, -1] = rewards_N
        value_TN.append((probs_SA[rows_N] * after_NA).sum(axis=1))
    return World(rules, probs_SA, node_of, rows_N, next_NA, pay_N, rewards_N, np.stack(value_TN))


def softmax(theta_SA: np.ndarray) -> np.ndarray:
    exp_SA = np.exp(theta_SA - theta_SA.max(axis=-1, keepdims=True))
    return exp_SA / exp_SA.sum(axis=-1, keepdims=True)


class Letters:
    """A tokenizer of one letter per token; END is special."""

    bos_token = None

    def __init__(self, vocabulary: str):
        self.vocabulary, self.eos_token_id = vocabulary, vocabulary.index(END)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.vocabulary.index(letter) for letter in text]

    def spell(self, token_ids: Sequence[int]) -> str:
        return "".join([self.vocabulary[token] for token in token_ids])

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        text = self.spell(token_ids)
        return text.replace(END, "") if skip_special_tokens else text
