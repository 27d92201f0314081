"""Credit by a critic on the coin walk: RLOO before it has learnt, who learns what and when, files, a whole training."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from coin_walk import CoinWalk, make_environment, make_walker, open_walk
from judged import ArbitraryCritic, make_vine_critic
from tiny import LOOP
from tiny_critic import SAMPLING, make_optim, make_policy

from vineppo.credit.common import CreditContext, explained_variance, variance
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.credit.states import StatesConfig
from vineppo.credit.vine_critic import VineCritic, VineCriticConfig, calibration_error
from vineppo.learner.config import ActionCriticConfig, LearnerConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.train import TrainRecipe, train
from vineppo.rollouts import sample_groups
from vineppo.runs.metrics import whole_lines
from vineppo.runs.recipe import make_recipe
from vineppo.types import SamplingParams, UserError

HEAD = ActionCriticConfig(width=32, precision="float32", optim=make_optim(3e-3))


@pytest.fixture(scope="module")
def environment():
    return replace(make_environment(CoinWalk()), params=SamplingParams(num_alternatives=3))


def sample(environment, number: int):
    problems = environment.task.sample(4, seed=number)
    return sample_groups(environment, problems, SAMPLING, seed=1000 + number)


@pytest.fixture(scope="module")
def groups(environment):
    return sample(environment, 1)


def make_estimator(environment, **config: Any) -> VineCritic:
    """With a head on a policy that was never trained."""
    return VineCritic(VineCriticConfig(critic=HEAD, **config), CreditContext(environment, policy=make_policy()))


def advantages_of(assigned) -> list[tuple[float, ...]]:
    return [credit.advantages for group in assigned.credits for credit in group]


def test_before_the_critic_has_learnt_it_is_rloo(environment, groups):
    found = make_estimator(environment).assign(groups, seed=0)
    assert advantages_of(found) == advantages_of(RLOO(RLOOConfig()).assign(groups, seed=0))
    assert found.metrics["credit/square_left"] == 1.0


def test_permuting_rollouts_permutes_credits(environment, groups):
    estimator = make_vine_critic(environment)
    straight = advantages_of(estimator.assign(groups, seed=0))
    backwards = advantages_of(estimator.assign([group[::-1] for group in groups[::-1]], seed=0))
    for one, other in zip(straight, backwards[::-1], strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_values_are_the_critic_s_at_boundaries_and_the_reward_at_the_end(environment, groups):
    (credits, *_), critic = make_vine_critic(environment).assign(groups, seed=0).credits, ArbitraryCritic()
    for rollout, credit in zip(groups[0], credits, strict=True):
        probs = np.exp([[logprob for _, logprob in pairs] for pairs in rollout.completion.alternatives or ()])
        values = (probs * critic.along(rollout)).sum(axis=1) / probs.sum(axis=1)
        assert credit.values == pytest.approx([*values[list(credit.boundaries[:-1])], rollout.reward])


def test_it_learns_once_an_iteration_from_what_was_assigned_last(environment, groups):
    estimator = make_vine_critic(environment)
    critic = cast(ArbitraryCritic, estimator.critic)
    estimator.assign(sample(environment, 2), seed=0)  # and thrown away
    estimator.assign(groups, seed=0)
    for _ in range(3):
        estimator.update(())
    assert critic.learnt == [rollout for group in groups for rollout in group]
    assert estimator.num_iterations == 2


def test_vines_start_behind_the_prompt_and_only_teach(environment, groups):
    config = {"num_vines": 2, "states": StatesConfig(kind="stride", stride=3)}
    estimator, alone = make_vine_critic(environment, **config), make_vine_critic(environment)
    vine_tokens = environment.engine.usage["vine"]
    assert advantages_of(estimator.assign(groups, seed=0)) == advantages_of(alone.assign(groups, seed=0))
    estimator.update(())
    flat = [rollout for group in groups for rollout in group]
    passed = {(r.problem.id, r.prompt_ids + r.token_ids[:t]) for r in flat for t in range(len(r.token_ids))}
    vines = cast(ArbitraryCritic, estimator.critic).learnt[len(flat) :]
    states = {(vine.problem.id, vine.prompt_ids) for vine in vines}
    assert states == {state for state in passed if len(state[1]) > 1 and len(state[1]) % 3 == 1}
    assert len(vines) == 2 * len(states)
    assert environment.engine.usage["vine"] - vine_tokens == sum(len(vine.token_ids) for vine in vines)
    for vine in vines:
        whole = environment.text(vine.prompt_ids[1:] + vine.token_ids)
        finished = vine.completion.finish_reason != "length"
        assert vine.reward == (environment.task.grade(vine.problem, whole).reward if finished else 0.0)


def test_what_it_may_trust_comes_from_responses_that_were_judged_before_they_were_learnt(environment, groups):
    """After the first iteration, of a critic that knew nothing, there is no evidence; after the second there is."""
    estimator = make_estimator(environment)
    for number, evidence in ((1, 0.0), (2, 16.0), (3, 16 * 1.9)):
        estimator.assign(sample(environment, number), seed=0)
        estimator.update(())
        assert estimator.squares.num_rollouts == pytest.approx(evidence)


def test_a_critic_that_is_asked_nothing_useful_is_not_trusted(environment):
    """Numbers from a hash explain nothing of the walk: what is left of the squares stays near 1."""
    estimator = VineCritic(VineCriticConfig(), CreditContext(environment), critic=ArbitraryCritic())
    left = []
    for number in range(12):
        left.append(estimator.assign(sample(environment, number), seed=0).metrics["credit/square_left"])
        estimator.update(())
    assert 0.75 < np.mean(left[6:]) < 1.1


def test_without_alternatives_there_is_no_credit():
    with pytest.raises(UserError, match=r"sampling\.num_alternatives = 0: vine_critic .* set it to 2 or more"):
        VineCritic(VineCriticConfig(), CreditContext(make_environment()), critic=ArbitraryCritic())


@pytest.mark.parametrize(("said", "found"), [({}, 8), ({"num_alternatives": 3}, 3)])
def test_a_recipe_need_not_ask_for_alternatives(said, found):
    tree = LOOP | {"name": "x", "model": {"name": "none"}, "credit": {"name": "vine_critic"}}
    recipe = make_recipe(tree | {"sampling": LOOP["sampling"] | said}, kind=TrainRecipe, source="test")
    assert recipe.sampling.num_alternatives == found
    rloo = make_recipe(tree | {"credit": {"name": "rloo"}}, kind=TrainRecipe, source="test")
    assert rloo.sampling.num_alternatives == 0


# Metrics


@pytest.mark.parametrize(
    "numbers", [[0.1] * 3, [3.5], [1e9 + i / 7 for i in range(50)], [(-0.5) ** i for i in range(9)]]
)
def test_the_variance_is_the_exact_one(numbers):
    assert variance(numbers) == pytest.approx(statistics.pvariance(numbers), rel=1e-12)
    assert variance([0.1] * 3) == variance([]) == 0  # exactly


def test_explained_variance_and_calibration():
    rng = np.random.default_rng(0)
    guesses = rng.random(100_000)
    rewards = (rng.random(100_000) < guesses).astype(float)
    of_guesses, of_rewards = guesses.tolist(), rewards.tolist()
    assert explained_variance(of_rewards, of_rewards) == 1
    assert explained_variance([0.3] * 100_000, of_rewards) == pytest.approx(0)
    assert explained_variance(of_guesses, of_rewards) == pytest.approx(1 / 3, abs=0.01)  # Var(p) = 1/12, Var(R) = 1/4
    assert explained_variance([], []) == 0
    assert calibration_error(rewards, guesses) < 0.01  # ten bins of 10,000, each off by about .004
    assert calibration_error(rewards, guesses * 0.8) == pytest.approx(0.1, abs=0.01)
    assert calibration_error(np.full(8, -3.0), np.full(8, -2.5)) == 0.5


# The loop


def run(folder: Path, num_iterations: int) -> list[dict[str, Any]]:
    """The lines of its metrics."""
    tree = {"credit": {"name": "vine_critic"}, "train": {"num_iterations": num_iterations, "minibatch_size": 8}}
    with open_walk(folder, tree) as session:
        recipe = cast(TrainRecipe, session.recipe)
        environment = session.setup.make_environment(session.setup.make_engine(), recipe.sampling)
        config = LearnerConfig(optim=make_optim(0.05), precision="float32", kl_coef=0.0)
        learner = PolicyLearner(config, make_walker(), None, sampling=SamplingParams(), total_steps=100)
        context = CreditContext(environment, policy=make_policy())
        train(recipe, session, environment, learner, VineCritic(VineCriticConfig(critic=HEAD), context))
    return [json.loads(line) for line in whole_lines(folder / "metrics.jsonl")]


def test_the_policy_learns_to_end_above_its_start(tmp_path):
    lines = run(tmp_path, 12)
    rewards = [line["reward/mean"] for line in lines]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    assert lines[0]["credit/trust_prompt"] == 0
    assert all(line["critic/num_steps"] == 2 for line in lines)  # sixteen responses, in minibatches of eight


def test_a_loaded_estimator_goes_on_exactly(environment, groups, tmp_path):
    estimator, resumed = make_estimator(environment), make_estimator(environment)
    for number in range(3):
        estimator.assign(sample(environment, number), seed=0)
        estimator.update(())
    estimator.save(tmp_path)
    resumed.load(tmp_path)
    for one in (estimator, resumed):
        one.assign(sample(environment, 7), seed=0)
        one.update(())
    assert estimator.assign(groups, seed=1) == resumed.assign(groups, seed=1)
    assert np.array_equal(estimator.squares.products_CC, resumed.squares.products_CC)
    assert estimator.memory() == resumed.memory()


@pytest.mark.parametrize("trust", ["{}", '{"products": [[1]], "num_rollouts": 1, "num_iterations": 1}'])
def test_a_file_of_something_else_is_named(environment, groups, tmp_path, trust):
    estimator = make_estimator(environment)
    estimator.save(tmp_path)
    (tmp_path / "critic" / "trust.json").write_text(trust)
    with pytest.raises(UserError, match=r"trust\.json"):
        estimator.load(tmp_path)
