"""The mean of a policy gradient with no formula and no luck: the real estimator under every outcome of a tiny world.

The engine here does not draw. Each token is a fork of the program: `every_outcome` runs it again for each way that all
forks together can go, rollouts and vines alike, with the probability of that way. So whatever an estimator does with
what it samples (pools, tops up, skips, branches, trains on vines), its expected gradient is a finite sum.

Responses are one or two lines of a letter each, ended by "=", which has no text as <eos> has none:

    += -= +|+= +|-= -|+= -|-=        with "|" for the line break

Every state has a row of the policy's table to itself, so a bias anywhere is seen. Rewards are arbitrary numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log
from typing import Any

from vineppo.environment import Environment
from vineppo.grading import Grader, GradingConfig
from vineppo.protocols import CreditEstimator, OnComplete
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.segments import cut_lines
from vineppo.types import Assigned, Completion, Grade, Group, Problem, Request, Rollout, SamplingParams

LETTERS = "+-\n="
PROMPT = "x"
BUDGET = 4  # tokens of the longest response
POLICY = {
    "": {"+": 0.6, "-": 0.4},
    "+": {"\n": 0.7, "=": 0.3},
    "-": {"\n": 0.4, "=": 0.6},
    "+\n": {"+": 0.8, "-": 0.2},
    "-\n": {"+": 0.3, "-": 0.7},
    "+\n+": {"=": 1.0},
    "+\n-": {"=": 1.0},
    "-\n+": {"=": 1.0},
    "-\n-": {"=": 1.0},
}
REWARDS = {"+": 0.5, "-": 0.1, "+\n+": 1.0, "+\n-": -0.4, "-\n+": 0.8, "-\n-": 0.0}

Gradient = dict[tuple[str, str], float]
"""d J / d logit of (state, letter)."""


class Outcome:
    """One way for all forks to go. `choices` are those made; forks beyond them take their first branch."""

    def __init__(self, choices: Sequence[int] = ()):
        self._given = list(choices)
        self.choices: list[int] = []
        self.num_branches: list[int] = []
        self.probability = 1.0

    def choose(self, probabilities: Sequence[float]) -> int:
        """Which branch this fork takes; a certain one is no fork."""
        if len(probabilities) == 1:
            return 0
        fork = len(self.choices)
        choice = self._given[fork] if fork < len(self._given) else 0
        self.choices.append(choice)
        self.num_branches.append(len(probabilities))
        self.probability *= probabilities[choice]
        return choice


def every_outcome() -> Iterator[Outcome]:
    """Depth first. The caller runs the program with each outcome before it asks for the next."""
    outcome = Outcome()
    while True:
        yield outcome
        choices, sizes = outcome.choices, outcome.num_branches
        while choices and choices[-1] + 1 == sizes[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        outcome = Outcome([*choices[:-1], choices[-1] + 1])


class ForkingEngine:
    """Takes the tokens of its `outcome`."""

    def __init__(self) -> None:
        self.usage: Counter[str] = Counter()
        self.outcome = Outcome()

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        pass

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        raise NotImplementedError("the policy of this world is fixed")

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        completions = [self._complete(request, params.num_alternatives) for request in requests]
        self.usage[purpose] += sum(len(completion.token_ids) for completion in completions)
        return completions

    def _complete(self, request: Request, num_alternatives: int) -> Completion:
        state, tokens, logprobs, alternatives = to_text(request.prefix_ids)[1:], [], [], []
        while not state.endswith("="):
            likeliest = sorted(POLICY[state].items(), key=lambda pair: -pair[1])
            alternatives.append(tuple((LETTERS.index(a), log(p)) for a, p in likeliest[:num_alternatives]))
            letter, probability = likeliest[self.outcome.choose([p for _, p in likeliest])]
            state += letter
            tokens.append(LETTERS.index(letter))
            logprobs.append(log(probability))
        known = tuple(alternatives) if num_alternatives else None
        return Completion(tuple(tokens), tuple(logprobs), "eos", 0, known)


class TwoLines:
    isolate = False

    def __init__(self, cut: Callable[[str], list[int]] = cut_lines):
        self.cut = cut

    def sample(self, n: int, *, seed: int) -> list[Problem]:
        return [Problem(f"two-lines/{i}", PROMPT, "") for i in range(n)]

    def split(self, name: str) -> list[Problem]:
        return self.sample(1, seed=0)

    def grade(self, problem: Problem, response: str) -> Grade:
        return Grade(REWARDS[response], "correct")

    def answer(self, response: str) -> str:
        return response

    def segment(self, response: str) -> list[int]:
        return self.cut(response)


class Letters:
    """A tokenizer of one letter per token, of which "=" has no text of its own."""

    bos_token, eos_token_id = None, LETTERS.index("=")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [(LETTERS + PROMPT).index(letter) for letter in text]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return to_text(token_ids).replace("=", "")


def to_text(token_ids: Sequence[int]) -> str:
    return "".join((LETTERS + PROMPT)[token] for token in token_ids)


def make_environment(cut: Callable[[str], list[int]] = cut_lines, *, num_alternatives: int = 0) -> Environment:
    task = TwoLines(cut)
    return Environment(
        engine=ForkingEngine(),
        task=task,
        grader=Grader(task, GradingConfig()),
        tokenizer=Letters(),
        params=SamplingParams(num_alternatives=num_alternatives),
        max_prompt_tokens=1,
    )


def expected_gradient(
    environment: Environment, estimator: CreditEstimator, *, group_size: int = 2, num_prompts: int = 1
) -> Gradient:
    """The mean over all outcomes of one iteration's policy gradient, as the estimator's credit makes it."""
    sampling = SamplingConfig(prompts_per_iteration=num_prompts, group_size=group_size, max_new_tokens=BUDGET)
    mean: Gradient = defaultdict(float)
    for outcome in every_outcome():
        environment.engine.outcome = outcome  # type: ignore[attr-defined]
        groups = sample_groups(environment, environment.task.sample(num_prompts, seed=0), sampling, seed=0)
        assigned = estimator.assign(groups, seed=0)
        add_gradient(mean, groups, assigned, outcome.probability)
    return mean


def add_gradient(total: Gradient, groups: Sequence[Group], assigned: Assigned, weight: float) -> None:
    """Adds `weight` times the sum over trained tokens of A grad log pi, extra rollouts included, per rollout."""
    share = weight / sum(map(len, groups))
    for group, credits in zip(groups, assigned.credits, strict=True):
        for rollout, credit in zip(group, credits, strict=True):
            add_response(total, rollout, credit.weighted_advantages, share)
    for extra in assigned.extra:
        add_response(total, extra.rollout, extra.credit.weighted_advantages, share * extra.weight)


def add_response(total: Gradient, rollout: Rollout, advantages: Sequence[float], weight: float) -> None:
    text = to_text(rollout.token_ids)
    for t, advantage in enumerate(advantages):
        if rollout.action_mask is None or rollout.action_mask[t]:
            for letter, probability in POLICY[text[:t]].items():
                score = (letter == text[t]) - probability
                total[text[:t], letter] += weight * advantage * score


def value(state: str) -> float:
    if state.endswith("="):
        return REWARDS[state[:-1]]
    return sum(p * value(state + letter) for letter, p in POLICY[state].items())


def true_gradient() -> Gradient:
    """d J / d logit = P(s) pi(a | s) (Q(s, a) - V(s)) (Sutton et al. 2000, theorem 1)."""
    gradient: Gradient = {}

    def visit(state: str, reach: float) -> None:
        for letter, p in POLICY.get(state, {}).items():
            gradient[state, letter] = reach * p * (value(state + letter) - value(state))
            visit(state + letter, reach * p)

    visit("", 1.0)
    return gradient


def exact_bias(
    make: Callable[[Environment], CreditEstimator],
    *,
    group_size: int = 2,
    num_prompts: int = 1,
    num_alternatives: int = 0,
    cut: Callable[[str], list[int]] = cut_lines,
) -> float:
    """The length of the expected gradient's error, in lengths of the true gradient.

    exact_bias(lambda environment: RLOO(RLOOConfig()), group_size=3)  # 0 but for rounding
    """
    environment = make_environment(cut, num_alternatives=num_alternatives)
    estimator, truth = make(environment), true_gradient()
    found = expected_gradient(environment, estimator, group_size=group_size, num_prompts=num_prompts)
    error2 = sum((found.get(key, 0.0) - truth.get(key, 0.0)) ** 2 for key in found.keys() | truth.keys())
    return (error2 / sum(number**2 for number in truth.values())) ** 0.5
