"""The truth, computed in two ways: dynamic programming against enumeration, and the engine against both."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from statistics import fmean

import numpy as np
import pytest

from vineppo.exact.chain import CHAINS, Chain
from vineppo.exact.language import Language
from vineppo.exact.play import make_environment
from vineppo.exact.world import END, World, make_world
from vineppo.exact.worlds import WORLDS, find_world
from vineppo.types import Request, SamplingParams

LANGUAGE = find_world("language")
SHORT_CHAINS = [
    Chain("fatal", 3, (0, 2), (0.9, 0.6)),
    Chain("repair", 4, (0, 1, 3), (0.8, 0.7), repair=0.3),
    Chain("deadly", 4, (0, 1, 2, 3), (0.8, 0.7), repair=0.4, deadly=True),
]


def is_right(rules: Language | Chain, text: str) -> bool:
    """Said again, from the text alone."""
    response = text[1:]
    if not response.endswith(END):
        return False
    if isinstance(rules, Language):
        number = 1
        for operation in response:
            number = number + 1 if operation == "+" else 2 * number if operation == "*" else number
        return number == int(text[0])
    steps = response.replace(".", "").replace("\n", "").removesuffix(END)
    if rules.deadly:
        return "--" not in steps and not steps.endswith("-")
    return not steps.endswith("-") if rules.repair else "-" not in steps


@pytest.mark.parametrize("rules", [Language(), *SHORT_CHAINS], ids=lambda rules: rules.name)
def test_values_are_means_over_all_responses_played_to_the_end(rules):
    world = make_world(rules)
    assert math.fsum(p for _, p in world.responses) == pytest.approx(1)
    assert len({text for text, _ in world.responses}) == len(world.responses)
    total: defaultdict[str, float] = defaultdict(float)
    reach: defaultdict[str, float] = defaultdict(float)
    for text, p in world.responses:
        for t in range(1, len(text) + 1):
            reach[text[:t]] += p
            total[text[:t]] += p * is_right(rules, text)
    for state in reach:
        assert world.value(state) == pytest.approx(total[state] / reach[state], abs=1e-12)


@pytest.mark.parametrize("name", WORLDS)
def test_gradient_is_the_mean_of_reward_times_score(name):
    world = find_world(name)
    returns = [(text, [world.value(text)] * (len(text) - 1), p) for text, p in world.responses]
    assert world.policy_gradient(returns) == pytest.approx(world.true_gradient, abs=1e-13)


@pytest.mark.parametrize("rules", [Language(), *SHORT_CHAINS], ids=lambda rules: rules.name)
def test_gradient_is_the_finite_difference_of_the_expected_reward(rules):
    def expected_reward(theta_SA: np.ndarray) -> float:
        world = make_world(rules, theta_SA)
        return fmean(world.value(prompt) for prompt in world.prompts)

    theta_SA, true_SA = rules.policy(), make_world(rules).true_gradient
    for s, a in np.argwhere(np.isfinite(theta_SA)):
        step_SA = np.zeros_like(theta_SA)
        step_SA[s, a] = 1e-5
        above, below = expected_reward(theta_SA + step_SA), expected_reward(theta_SA - step_SA)
        assert true_SA[s, a] == pytest.approx((above - below) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("name", WORLDS)
def test_the_value_is_the_mean_of_the_action_values(name):
    world = find_world(name)
    for left in range(1, world.budget + 1):
        for node in range(len(world.node_of)):
            probs_A = world.probs_SA[world.rows_N[node]]
            assert probs_A @ world.action_values(node, left) == pytest.approx(world.value_TN[left, node])


def test_the_language_is_not_trivial():
    truncated = sum(p for text, p in LANGUAGE.responses if text[-1] != END)
    assert 0.02 < truncated < 0.3
    states = {text[:t] for text, _ in LANGUAGE.responses for t in range(1, len(text))}
    spread = {a: fmean(abs(LANGUAGE.value(s + a) - LANGUAGE.value(s)) for s in states) for a in LANGUAGE.actions}
    assert spread[END] > 2 * spread["\n"]  # ending decides, waiting hardly does


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_chains_are_what_their_names_say(chain):
    world = make_world(chain)
    assert 8 <= chain.num_lines <= 32
    assert chain.name.endswith(f"-{chain.num_lines}")
    assert all(0.3 < world.value(prompt) < 0.75 for prompt in world.prompts)
    text, _ = world.responses[-1]
    assert len(make_environment(world).task.segment(text.removesuffix(END))) == chain.num_lines - 1
    good, broken = (world.node_of[chain.start("a")._replace(position=2 * chain.decisions[1], condition=c)]
                    for c in ("good", "broken"))  # fmt: skip
    left = world.budget - 2 * chain.decisions[1]
    assert (world.value_TN[left, broken] > 0) == (chain.repair > 0)
    assert world.value_TN[left, good] > world.value_TN[left, broken]
    assert any(node.condition == "dead" for node in world.node_of) == chain.deadly  # type: ignore[attr-defined]


def test_in_the_dead_world_much_is_lost():
    assert 0.35 < share_lost(find_world("dead-16")) < 0.45


def share_lost(world: World) -> float:
    """Of the states that something is drawn from."""
    lost = [(p, value == 0) for text, p in world.responses for value in world.values(text)[:-1]]
    return sum(p * is_lost for p, is_lost in lost) / sum(p for p, _ in lost)


# The engine


def generate(world: World, requests: list[Request], num_alternatives: int = 0, *, keep: bool = False):
    engine = make_environment(world).engine
    params = SamplingParams(num_alternatives=num_alternatives)
    return engine, engine.generate(requests, params, purpose="eval", keep=keep)


@pytest.mark.parametrize("name", ["language", "dead-16"])
def test_a_completion_is_decided_by_its_own_seed_and_budget(name):
    world = find_world(name)
    prompts = [tuple(world.tokenizer.encode(prompt)) for prompt in world.prompts]
    seeds = range(0, 10**18, 10**16)
    requests = [Request(prompts[i % len(prompts)], 1 + i % world.budget, seed) for i, seed in enumerate(seeds)]
    engine, together = generate(world, requests)
    alone = [generate(world, [request])[1][0] for request in reversed(requests)]
    assert alone[::-1] == together
    assert engine.usage["eval"] == sum(len(completion.token_ids) for completion in together)
    for request, completion in zip(requests, together, strict=True):
        text = world.text(request.prefix_ids + completion.token_ids)
        assert completion.finish_reason == ("eos" if text[-1] == END else "length")
        assert len(completion.token_ids) == request.max_new_tokens or text[-1] == END
        if text in (reach := dict(world.responses)):
            assert math.exp(sum(completion.logprobs)) / len(prompts) == pytest.approx(reach[text])
    with pytest.raises(ValueError, match="not with SamplingParams"):
        engine.generate(requests, SamplingParams(temperature=0.5), purpose="eval", keep=False)


@pytest.mark.parametrize("name", ["language", "repair-8"])
def test_responses_come_as_often_as_their_probability_says(name):
    num, world = 20_000, find_world(name)
    prompt = world.prompts[1]
    requests = [Request(tuple(world.tokenizer.encode(prompt)), world.budget, seed) for seed in range(num)]
    counts = Counter(prompt + world.text(completion.token_ids) for completion in generate(world, requests)[1])
    probability = {text: p * len(world.prompts) for text, p in world.responses if text[0] == prompt}
    assert counts.keys() <= probability.keys()
    common = {text: p for text, p in probability.items() if num * p >= 10}
    common["rest"] = 1 - sum(common.values())
    counts["rest"] = num - sum(counts[text] for text in common if text != "rest")
    chi2 = sum((counts[text] - num * p) ** 2 / (num * p) for text, p in common.items())
    degrees = len(common) - 1
    assert abs(chi2 - degrees) < 4 * math.sqrt(2 * degrees)


def test_alternatives_are_the_likeliest_of_what_can_come():
    world = find_world("repair-8")
    request = Request(tuple(world.tokenizer.encode("a")), world.budget, seed=1)
    (plain,), (two,), (many,) = (generate(world, [request], n)[1] for n in (0, 2, 9))
    assert plain.alternatives is None
    assert two.alternatives == many.alternatives  # of two letters at most
    assert two.alternatives is not None
    for token, logprob, pairs in zip(two.token_ids, two.logprobs, two.alternatives, strict=True):
        assert dict(pairs)[token] == logprob
        assert math.fsum(math.exp(p) for _, p in pairs) == pytest.approx(1)
    assert len(two.alternatives[0]) == 2
    assert len(two.alternatives[1]) == 1  # the line break is certain


def test_new_weights_are_sampled_from():
    engine = make_environment(LANGUAGE).engine
    engine.load_weights({"probs": np.tile([0.0, 0.0, 0.0, 1.0], (len(LANGUAGE.probs_SA), 1))}, version=3)
    (completion,) = engine.generate([Request((4,), 6, 0)], SamplingParams(), purpose="eval", keep=False)
    assert (LANGUAGE.text(completion.token_ids), completion.policy_version) == (END, 3)


def states(world: World, prefix: str, completion_texts: list[str]) -> set[str]:
    """That something was drawn from."""
    return {prefix + text[:t] for text in completion_texts for t in range(len(text))}


def test_every_state_is_computed_once_and_what_was_kept_not_again():
    world, params = find_world("repair-8"), SamplingParams()
    engine = make_environment(world).engine
    ids = world.tokenizer.encode

    def computed_by(prefixes: list[str], *, keep: bool) -> tuple[set[str], int]:
        before = engine.computed["x"]  # type: ignore[attr-defined]
        requests = [Request(tuple(ids(prefix)), 1 + world.budget - len(prefix), k) for k, prefix in enumerate(prefixes)]
        completions = engine.generate(requests, params, purpose="x", keep=keep)
        drawn = set().union(
            *(states(world, p, [world.text(c.token_ids)]) for p, c in zip(prefixes, completions, strict=True))
        )
        return drawn, engine.computed["x"] - before  # type: ignore[attr-defined]

    drawn, computed = computed_by(["a"] * 4, keep=True)
    assert computed == len(drawn)
    known = max(drawn, key=len)[:7]
    assert known in drawn
    vines, computed = computed_by([known] * 3, keep=False)
    assert computed == len(vines)  # all before it is kept
    foreign = "b+\n-\n+"
    vines, computed = computed_by([foreign, foreign, foreign[:4]], keep=False)
    before = {foreign[:t] for t in range(1, 6)}
    assert computed == len(vines | before)
    assert computed_by([foreign], keep=False)[1] > len(foreign) - 1  # it was not kept
    engine.load_weights({"probs": world.probs_SA}, version=1)
    assert computed_by([known], keep=False)[1] == len(states(world, known, ["x" * (17 - len(known))])) + len(known) - 1
