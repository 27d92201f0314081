"""The loop on the coin walk, whose every part is real: engine, grader, learner, credit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from coin_walk import CoinWalk, make_environment, make_walker

from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.learner.config import LearnerConfig, OptimConfig
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.train import Run, TrainConfig, to_samples, train
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.runs.metrics import MetricsConfig, MetricsLog, whole_lines
from vineppo.runs.shutdown import Shutdown
from vineppo.types import SamplingParams, UserError

SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)


def make_run(folder: Path, finish=lambda *_: None) -> Run:
    environment = make_environment(CoinWalk())
    model = make_walker()
    learner = PolicyLearner(
        LearnerConfig(optim=OptimConfig(lr=0.05, schedule="constant", warmup_ratio=0)),
        model,
        make_walker(),
        sampling=SamplingParams(),
        total_steps=100,
    )
    log = MetricsLog(folder, MetricsConfig())
    credit = VinePPO(VinePPOConfig(), environment)
    return Run(0, environment, SAMPLING, learner, credit, log, Shutdown(pytest.fail), finish)


def test_a_policy_learns_to_end_above_its_start(tmp_path):
    rewards = []

    def finish(iteration, groups, credits):
        rewards.append(sum(rollout.reward for group in groups for rollout in group) / 16)

    train(TrainConfig(num_iterations=12, minibatch_size=8), make_run(tmp_path, finish))
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards


def test_an_iteration_can_start_anywhere_and_is_the_same(tmp_path):
    """Seeds are paths of content: iteration 1 draws the same rollouts whether or not iteration 0 ran before it."""
    seen: dict[str, list] = {"whole": [], "tail": []}
    cfg = TrainConfig(num_iterations=2, minibatch_size=8)
    whole = make_run(tmp_path / "a", lambda i, groups, credits: seen["whole"].append((i, groups, credits)))
    (tmp_path / "a").mkdir()
    frozen = PolicyLearner(
        LearnerConfig(optim=OptimConfig(lr=1e-30, warmup_ratio=0)), make_walker(), None,
        sampling=SamplingParams(), total_steps=100,
    )  # fmt: skip
    train(cfg, replace(whole, learner=frozen))
    tail = make_run(tmp_path / "b", lambda i, groups, credits: seen["tail"].append((i, groups, credits)))
    train(cfg, replace(tail, learner=frozen), first_iteration=1)
    strip = [
        [[(r.token_ids, c.values) for r, c in zip(g, cs, strict=True)] for g, cs in zip(groups, credits, strict=True)]
        for _, groups, credits in (seen["whole"][1], seen["tail"][0])
    ]
    assert strip[0] == strip[1]


def test_samples_carry_the_engine_logprobs_and_the_credit():
    environment = make_environment()
    groups = sample_groups(environment, environment.task.sample(2, seed=1), SAMPLING, seed=2)
    credits = VinePPO(VinePPOConfig(num_vines=2), environment).assign(groups, seed=3)
    samples = to_samples(groups, credits)
    assert len(samples) == 8
    for sample, rollout in zip(samples, [r for g in groups for r in g], strict=True):
        assert sample.response_ids == rollout.token_ids
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in sample.sampling_logprobs)


def test_prompts_that_do_not_fit_are_skipped_and_none_left_is_an_error():
    environment = replace(make_environment(), max_prompt_tokens=0)
    with pytest.raises(UserError, match="all 2 prompts are longer than 0 tokens"):
        sample_groups(environment, environment.task.sample(2, seed=1), SAMPLING, seed=2)


def test_every_iteration_is_logged(tmp_path):
    run = make_run(tmp_path)

    def finish(iteration, groups, credits):
        run.log.write(iteration)

    train(TrainConfig(num_iterations=2, minibatch_size=8), replace(run, finish_iteration=finish))
    assert len(whole_lines(tmp_path / "metrics.jsonl")) == 2
    assert len(whole_lines(tmp_path / "timings.jsonl")) == 2
