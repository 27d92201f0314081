"""A reward model as a critic of tokens: alternatives read together are those read apart, and bias nothing."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from coin_walk import TOKENIZER, make_environment
from judged import make_vine_critic
from tiny_critic import make_responses
from tiny_reward_model import save_classifier

from vineppo.config import validate
from vineppo.credit.common import CreditContext
from vineppo.credit.vine_critic import VineCritic, VineCriticConfig
from vineppo.exact.exhaustive import exact_bias
from vineppo.learner.reward_critic import RewardCritic
from vineppo.models import RewardModelConfig
from vineppo.models.branches import Branched, read_branches
from vineppo.models.reward_model import RewardModel, load_reward_model
from vineppo.types import Completion, Problem, Rollout, SamplingParams, UserError


@pytest.fixture(params=["token", "sequence"])
def model(request, tmp_path) -> RewardModel:
    save_classifier(tmp_path, request.param, num_labels=1 if request.param == "token" else 2)
    return load_reward_model(RewardModelConfig(path=str(tmp_path)))


def make_branched() -> list[Branched]:
    rng = random.Random(0)
    return [
        Branched(p, y, tuple((rng.randrange(len(y)), rng.randrange(len(TOKENIZER))) for _ in range(rng.randrange(6))))
        for p, y in make_responses(8)
    ]


@pytest.mark.parametrize("microbatch_tokens", [8192, 1])
def test_all_alternatives_in_one_forward_are_those_of_one_text_each(model, microbatch_tokens):
    model.microbatch_tokens = microbatch_tokens
    rows = make_branched()
    for row, (states, branches) in zip(rows, read_branches(model, rows), strict=True):
        assert states == pytest.approx(model.values([(row.prompt_ids, row.response_ids)])[0], abs=1e-5)
        apart = [(row.prompt_ids, (*row.response_ids[:t], token)) for t, token in row.branches]
        assert branches == pytest.approx([values[-1] for values in model.values(apart)] if apart else [], abs=1e-5)


def make_rollout(probs: list[dict[int, float]], tokens: list[int], mask: tuple[bool, ...] | None = None) -> Rollout:
    ranked = [sorted(row.items(), key=lambda pair: -pair[1]) for row in probs]
    alternatives = tuple(tuple((a, math.log(p)) for a, p in row) for row in ranked)
    logprobs = tuple(math.log(row[token]) for row, token in zip(probs, tokens, strict=True))
    completion = Completion(tuple(tokens), logprobs, "eos", 0, alternatives)
    length = len(tokens)
    return Rollout(Problem("p", "x", ""), (2,), completion, "", 1.0, "correct", (0, length), 9, action_mask=mask)


def test_it_is_read_where_something_is_decided_and_else_is_the_value_of_the_state(model):
    probs = [{0: 0.6, 1: 0.395, 3: 0.005}, {1: 0.995, 0: 0.005}, {0: 0.5, 1: 0.5}]
    for drawn in ([0, 1, 1], [1, 1, 0], [3, 0, 1]):  # whichever token comes, the same are read
        rollout = make_rollout(probs, drawn, mask=(True, True, False))
        (q_LM,) = RewardCritic(model).action_values([rollout])
        (states,) = model.values([((2,), tuple(drawn))])
        after = [model.values([((2,), (token,))])[0][-1] for token in (0, 1)]
        assert q_LM[0] == pytest.approx([*after, states[0]], abs=1e-5)
        assert q_LM[1] == pytest.approx([states[1]] * 3, abs=1e-5)
        assert q_LM[2] == pytest.approx([states[2]] * 3, abs=1e-5)


@pytest.mark.parametrize("config", [{}, {"baseline": "value"}, {"control_variate": False}], ids=str)
def test_it_biases_nothing(model, config):
    critic: Any = RewardCritic(model)
    bias = exact_bias(lambda e: make_vine_critic(e, critic, **config), num_prompts=1, num_alternatives=3)
    assert bias < 1e-5  # the model computes in fp32


def test_it_is_made_from_a_recipe_s_section_and_saved_with_nothing(tmp_path):
    save_classifier(tmp_path / "model")
    tree = {"name": "vine_critic", "reward_model": {"path": str(tmp_path / "model")}}
    config = validate(VineCriticConfig, tree, source="test")
    environment = replace(make_environment(), params=SamplingParams(num_alternatives=4))
    estimator = VineCritic(config, CreditContext(environment, device="cpu"))
    assert isinstance(estimator.critic, RewardCritic)
    estimator.save(tmp_path)
    assert [path.name for path in (tmp_path / "critic").iterdir()] == ["trust.json"]
    estimator.load(tmp_path)
    with pytest.raises(UserError, match="a reward_model is frozen, and would learn nothing from vines"):
        validate(VineCriticConfig, tree | {"num_vines": 2}, source="test")


def test_what_does_not_attend_as_it_is_told_is_refused(tmp_path, monkeypatch):
    save_classifier(tmp_path)
    model = load_reward_model(RewardModelConfig(path=str(tmp_path)))
    forward = model.model.base_model.forward
    deaf = lambda *args, attention_mask, **rest: forward(*args, attention_mask=None, **rest)  # noqa: E731
    monkeypatch.setattr(model.model.base_model, "forward", deaf)
    with pytest.raises(UserError, match="cannot be asked about several next tokens at once"):
        RewardCritic(model)
