"""RestEM: what is kept, which candidate is chosen, and that every refit starts from the initial policy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from coin_walk import TREE, CoinWalk, make_environment, make_walker, open_walk

from vineppo.evaluate import evaluate
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.epochs import minibatches, num_steps
from vineppo.methods.restem import Candidate, Refits, RestEMConfig, RestEMRecipe, keep_correct, restem, select
from vineppo.methods.sft import nll_loss
from vineppo.rollouts import sample_iteration
from vineppo.runs.metrics import whole_lines
from vineppo.sample import Sample
from vineppo.seeding import derive_seed
from vineppo.types import Completion, Group, Problem, Rollout, SamplingParams


def make_group(name: str, *graded: tuple[int, float]) -> Group:
    """Rollouts whose responses are (number, number + 1)."""
    return [
        Rollout(
            Problem(name, "p", "a"), (5, len(name)), Completion((n, n + 1), (0.0, 0.0), "eos", 0), "", reward,
            "correct" if reward else "wrong", (0, 2), 20,
        )
        for n, reward in graded
    ]  # fmt: skip


def kept(groups: list[Group], **options: Any) -> list[tuple[int, int]]:
    """(length of the problem's name, number of the response)"""
    samples = keep_correct(groups, RestEMConfig(**options))
    assert all(sample.response_ids == (sample.response_ids[0], sample.response_ids[0] + 1) for sample in samples)
    return [(sample.prompt_ids[1], sample.response_ids[0]) for sample in samples]


def test_correct_responses_are_kept_once_in_the_order_they_were_sampled():
    groups = [
        make_group("a", (3, 1), (1, 0), (2, 1), (3, 1), (9, 0.5)),
        make_group("bb", (1, 0)),
        make_group("ccc", (3, 1)),
    ]
    assert kept(groups) == [(1, 3), (1, 2), (3, 3)]
    assert kept(groups, reward_threshold=0.5) == [(1, 3), (1, 2), (1, 9), (3, 3)]


def test_no_problem_gives_more_than_its_share():
    groups = [make_group("a", *((n % 5, 1.0) for n in range(20))), make_group("bb", (7, 1))]
    assert kept(groups, max_responses_per_problem=3) == [(1, 0), (1, 1), (1, 2), (2, 7)]
    assert kept(groups, max_responses_per_problem=10) == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 7)]


@pytest.mark.parametrize(
    ("accuracies", "best", "first_dip"),
    [
        ([0.5], 0, 0),
        ([0.5, 0.6, 0.7], 2, 2),
        ([0.5, 0.6, 0.4, 0.9], 3, 1),
        ([0.5, 0.4, 0.9], 2, 0),
        ([0.5, 0.6, 0.6, 0.6], 1, 1),  # of equals the earliest, and equal is no rise
        ([0.5, 0.5, 0.9], 2, 0),
        ([0.9, 0.8, 0.7], 0, 0),
    ],
)
def test_the_chosen_candidate_is_the_one_found_by_hand(accuracies, best, first_dip):
    def candidates() -> Iterator[Candidate]:
        yield from (Candidate(step, accuracy, {}) for step, accuracy in enumerate(accuracies))

    assert select(candidates(), "best").step == best
    dip = candidates()
    assert select(dip, "first_dip").step == first_dip
    left = [candidate.step for candidate in dip]
    assert left == list(range(first_dip + 2, len(accuracies)))  # no validation is wasted after the dip


class Watched(PolicyLearner):
    """Remembers what the policy was at its first step, and what it has learnt from."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.first_weights: dict[str, torch.Tensor] = {}
        self.seen: list[Sample] = []

    def step(self, minibatch, loss, **options):
        if not self.first_weights:
            assert self.optimizer_step.num_steps == 0
            assert not self.optimizer_step.optimizer.state
            self.first_weights = snapshot(self.model)
        self.seen += minibatch
        return super().step(minibatch, loss, **options)


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclass(frozen=True)
class WatchedRefits(Refits):
    """Keeps the learners that were made."""

    learners: list[Watched]

    def make_learner(self, total_steps: int) -> Watched:
        config, policy = self.recipe.learner, self.session.setup.policy
        learner = Watched(config, policy, None, sampling=SamplingParams(), total_steps=total_steps)
        self.learners.append(learner)
        return learner


CONFIG = {"num_iterations": 3, "num_epochs": 2, "minibatch_size": 8, "candidates_every": 2}
VALIDATION = {"split": "test", "num_samples": 8, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12}


class World:
    """A RestEM run on the coin walk; `done` has the policy's weights at the end of every iteration."""

    def __init__(self, folder: Path, *, lr: float = 0.05, start: Mapping[str, torch.Tensor] | None = None, **cfg: Any):
        self.learners: list[Watched] = []
        self.done: list[dict[str, torch.Tensor]] = []
        tree = {
            "restem": CONFIG | {"validation": VALIDATION} | cfg,
            "sampling": TREE["sampling"] | {"prompts_per_iteration": 8},
            "learner": {"precision": "float32", "optim": {"lr": lr, "warmup_ratio": 0.0}},
        }
        with open_walk(folder, tree, sinks=[self]) as session:
            self.policy = session.setup.policy
            self.recipe = cast(RestEMRecipe, session.recipe)
            if start is not None:
                self.policy.load_state_dict(start)
            environment = session.setup.make_environment(session.setup.make_engine(), self.recipe.sampling)
            refits = WatchedRefits(self.recipe, session, make_walker(), environment, self.learners)
            restem(self.recipe, session, environment, refits)
        self.lines = [json.loads(line) for line in whole_lines(folder / "metrics.jsonl")]

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.done.append(snapshot(self.policy))

    def close(self) -> None:
        pass

    @property
    def accuracies(self) -> list[float]:
        return [line["restem/validation_accuracy"] for line in self.lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_every_refit_starts_from_the_initial_policy_with_a_fresh_optimizer(world):
    assert [line["iteration"] for line in world.lines] == [1, 2, 3]
    assert len(world.learners) == 3
    initial = snapshot(make_walker())
    for learner in world.learners:
        assert same(learner.first_weights, initial)
        assert learner.optimizer_step.total_steps == num_steps(len(learner.seen) // 2, 8, 2)
    assert not same(world.done[0], initial)
    assert not same(world.done[0], world.done[1])


def test_an_iteration_is_the_one_written_down(world):
    """Sampled from what the iteration before has chosen; refitted, validated every two steps, the best one kept."""
    policy: Any = make_walker()
    environment = make_environment(CoinWalk())
    recipe, config = world.recipe, world.recipe.restem

    def accuracy() -> float:
        environment.engine.load_weights(policy.state_dict(), version=0)
        seed = derive_seed(0, "validation")
        return evaluate(environment, config.validation, seed=seed).scores["pass@1"].mean

    environment.engine.load_weights(world.done[0], version=0)
    seed = partial(derive_seed, 0, 1)
    examples = keep_correct(sample_iteration(environment, recipe.sampling, seed=seed).groups, config)
    assert sorted(s.response_ids for s in world.learners[1].seen) == sorted(s.response_ids for s in examples * 2)
    candidates = [(accuracy(), snapshot(policy))]
    last = num_steps(len(examples), 8, 2)
    learner = PolicyLearner(recipe.learner, policy, None, sampling=SamplingParams(), total_steps=last)
    for step, minibatch in minibatches(examples, 8, 2, seed=partial(seed, "refit")):
        learner.step(minibatch, nll_loss)
        if step % 2 == 1 or step + 1 == last:
            candidates.append((accuracy(), snapshot(policy)))
    best, weights = max(candidates, key=lambda candidate: candidate[0])
    assert world.accuracies[1] == best
    assert same(world.done[1], weights)


def test_the_selected_policy_is_right_more_often(world):
    environment = make_environment(CoinWalk())
    seed = derive_seed(0, "validation")
    initial = evaluate(environment, world.recipe.restem.validation, seed=seed).scores["pass@1"].mean
    assert min(world.accuracies) > initial + 0.15, world.accuracies


def test_the_end_comes_early_where_nothing_is_gained_and_only_if_asked(tmp_path):
    """With a rate of 0 every candidate is the initial policy."""
    for name, stop, num_iterations in (("a", True, 2), ("b", False, 3)):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, lr=0.0, stop_without_gain=stop)
        assert len(world.done) == num_iterations
        assert all(same(weights, snapshot(make_walker())) for weights in world.done)
        assert "eval/pass@1" in world.lines[-1]  # it knew that this was the end
