"""RestEM: what is kept, which candidate is chosen, and that every refit starts from the initial policy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from coin_walk import CoinWalk, make_environment, make_walker

from vineppo.evaluate import EvaluationConfig, evaluate
from vineppo.learner.config import LearnerConfig, OptimConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.epochs import minibatches, num_steps
from vineppo.methods.restem import Candidate, Progress, RestEMConfig, RestEMRun, keep_right, restem, select
from vineppo.methods.sft import nll_loss
from vineppo.rollouts import SamplingConfig, sample_iteration
from vineppo.runs.metrics import MetricsConfig, MetricsLog
from vineppo.runs.shutdown import Shutdown
from vineppo.seeding import derive_seed
from vineppo.types import Completion, Group, Problem, Rollout, Sample, SamplingParams

VALIDATION = EvaluationConfig(num_samples=8, temperature=1.0, top_p=1.0, max_new_tokens=12)
SAMPLING = SamplingConfig(prompts_per_iteration=8, group_size=4, max_new_tokens=12)


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
    samples = keep_right(groups, RestEMConfig(**options))
    assert all(sample.response_ids == (sample.response_ids[0], sample.response_ids[0] + 1) for sample in samples)
    return [(sample.prompt_ids[1], sample.response_ids[0]) for sample in samples]


def test_right_responses_are_kept_once_in_the_order_they_were_sampled():
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


class World:
    """A RestEM run on the coin walk; `done` has an entry for every completed iteration."""

    def __init__(self, folder: Path, *, lr: float = 0.05):
        self.lr = lr
        self.policy: Any = make_walker()
        self.environment = make_environment(CoinWalk())
        self.learners: list[Watched] = []
        self.done: list[tuple[Progress, dict[str, torch.Tensor]]] = []
        self.log = MetricsLog(folder, MetricsConfig())
        self.run = RestEMRun(
            0, self.environment, SAMPLING, self.policy, snapshot(self.policy), self.make_learner,
            partial(evaluate, self.environment, VALIDATION, seed=1, purpose="validation"),
            self.log, Shutdown(pytest.fail), self.finish,
        )  # fmt: skip

    def make_learner(self, total_steps: int) -> Watched:
        config = LearnerConfig(optim=OptimConfig(lr=self.lr, warmup_ratio=0.0), precision="float32")
        self.learners.append(Watched(config, self.policy, None, sampling=SamplingParams(), total_steps=total_steps))
        return self.learners[-1]

    def finish(self, progress: Progress, learner: PolicyLearner, weights: dict[str, torch.Tensor]) -> None:
        assert learner is self.learners[-1]
        assert same(snapshot(self.policy), weights)
        self.done.append((progress, snapshot(self.policy)))
        self.log.write(progress.iteration)


CONFIG = RestEMConfig(num_iterations=3, num_epochs=2, minibatch_size=8, candidates_every=2)


def test_every_refit_starts_from_the_initial_policy_with_a_fresh_optimizer(tmp_path):
    world = World(tmp_path)
    restem(CONFIG, world.run)
    assert [progress.iteration for progress, _ in world.done] == [1, 2, 3]
    assert [progress.is_finished(CONFIG) for progress, _ in world.done] == [False, False, True]
    assert len(world.learners) == 3
    initial = snapshot(make_walker())
    assert same(world.run.initial_weights, initial)
    for learner in world.learners:
        assert same(learner.first_weights, initial)
        assert learner.optimizer_step.total_steps == num_steps(len(learner.seen) // 2, 8, 2)
    assert not same(world.done[0][1], initial)
    assert not same(world.done[0][1], world.done[1][1])


def test_an_iteration_is_the_one_written_down(tmp_path):
    """Sampled from what the iteration before has chosen; refitted, validated every two steps, the best one kept."""
    world = World(tmp_path)
    restem(CONFIG, world.run)
    before, after = world.done[0], world.done[1]
    policy: Any = make_walker()
    environment = make_environment(CoinWalk())

    def accuracy() -> float:
        environment.engine.load_weights(policy.state_dict(), version=0)
        return evaluate(environment, VALIDATION, seed=1).scores["pass@1"].mean

    environment.engine.load_weights(before[1], version=0)
    seed = partial(derive_seed, 0, 1)
    examples = keep_right(sample_iteration(environment, SAMPLING, seed=seed).groups, CONFIG)
    assert sorted(s.response_ids for s in world.learners[1].seen) == sorted(s.response_ids for s in examples * 2)
    candidates = [(accuracy(), snapshot(policy))]
    last = num_steps(len(examples), 8, 2)
    learner = World(tmp_path, lr=world.lr).make_learner(last)
    learner = PolicyLearner(learner.config, policy, None, sampling=SamplingParams(), total_steps=last)
    for step, minibatch in minibatches(examples, 8, 2, seed=partial(seed, "refit")):
        learner.step(minibatch, nll_loss)
        if step % 2 == 1 or step + 1 == last:
            candidates.append((accuracy(), snapshot(policy)))
    best, weights = max(candidates, key=lambda candidate: candidate[0])
    assert after[0].accuracy == best
    assert same(after[1], weights)
    assert after[0].initial_accuracy == candidates[0][0]


def test_the_selected_policy_is_right_more_often(tmp_path):
    world = World(tmp_path)
    restem(CONFIG, world.run)
    accuracies = [progress.accuracy or 0 for progress, _ in world.done]
    assert min(accuracies) > (world.done[0][0].initial_accuracy or 1) + 0.15, accuracies


def test_going_on_after_an_iteration_is_not_having_stopped(tmp_path):
    whole, resumed = World(tmp_path / "a"), World(tmp_path / "b")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    restem(CONFIG, whole.run)
    progress, weights = whole.done[0]
    resumed.policy.load_state_dict(weights)
    resumed.environment.engine.load_weights(weights, version=1)
    restem(CONFIG, resumed.run, progress=progress)
    for (one, ours), (other, theirs) in zip(whole.done[1:], resumed.done, strict=True):
        assert one == other
        assert same(ours, theirs)
    lines = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in ("a", "b")]
    assert lines[0][1:] == lines[1]


def test_the_end_comes_early_where_nothing_is_gained_and_only_if_asked(tmp_path):
    """With a rate of 0 every candidate is the initial policy."""
    for name, stop, num_iterations in (("a", True, 2), ("b", False, 3)):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, lr=0.0)
        config = CONFIG.model_copy(update={"stop_without_gain": stop})
        restem(config, world.run)
        assert [progress.is_finished(config) for progress, _ in world.done] == [False] * (num_iterations - 1) + [True]
        assert all(same(weights, world.run.initial_weights) for _, weights in world.done)
        restem(config, world.run, progress=world.done[-1][0])
        assert len(world.done) == num_iterations  # it has ended
