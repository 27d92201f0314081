"""The loop on the coin walk, whose every part is real: engine, grader, learner, credit, session."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from coin_walk import make_environment, make_walker, open_walk

from vineppo.credit.common import CreditContext
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.methods.samples import to_samples
from vineppo.methods.train import TrainRecipe, learn, train
from vineppo.protocols import CreditEstimator
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.runs.metrics import whole_lines
from vineppo.types import Assigned, ExtraRollout, UserError

SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)
VINEPPO: dict[str, Any] = {"credit": {"name": "vineppo"}, "train": {"num_iterations": 12, "minibatch_size": 8}}


class TrainArguments:
    """What the loop takes, on the coin walk."""

    def __init__(self, session: Any, credit: CreditEstimator | None = None):
        setup = session.setup
        self.recipe, self.session = cast(TrainRecipe, setup.recipe), session
        self.environment = setup.make_environment(setup.make_engine(), self.recipe.sampling)
        self.learner = session.make_learner(make_walker(), sampling=self.recipe.sampling.params(), total_steps=100)
        self.credit = credit or VinePPO(VinePPOConfig(), CreditContext(self.environment))


def run(folder: Path, tree: dict[str, Any] = VINEPPO) -> list[dict[str, Any]]:
    """The lines of its metrics."""
    with open_walk(folder, tree) as session:
        train(**vars(TrainArguments(session)))
    return [json.loads(line) for line in whole_lines(folder / "metrics.jsonl")]


def test_a_policy_learns_to_end_above_its_start_and_every_iteration_is_logged(tmp_path):
    lines = run(tmp_path)
    rewards = [line["reward/mean"] for line in lines]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    assert [line["iteration"] for line in lines] == list(range(1, 13))
    assert len(whole_lines(tmp_path / "timings.jsonl")) == 12
    assert lines[-1]["eval/pass@1"] == json.loads((tmp_path / "result.json").read_text())["pass@1"]


def test_an_iteration_can_start_anywhere_and_is_the_same(tmp_path):
    """Seeds are paths of content: iteration 1 draws the same rollouts whether or not iteration 0 ran before it."""
    seen = []
    for first in (0, 1):
        with open_walk(tmp_path, VINEPPO | {"learner": {"precision": "float32", "optim": {"lr": 0.0}}}) as session:
            parts = TrainArguments(session)
            parts.environment.engine.load_weights(parts.learner.weights(), version=first)
            for iteration in range(first, 2):
                sampled, assigned = learn(iteration, **vars(parts))
            seen.append((sampled.groups, assigned.credits))
    strip = [
        [[(r.token_ids, c.values) for r, c in zip(g, cs, strict=True)] for g, cs in zip(groups, credits, strict=True)]
        for groups, credits in seen
    ]
    assert strip[0] == strip[1]


def test_a_sampler_that_missed_an_update_is_found_out(tmp_path):
    with open_walk(tmp_path, VINEPPO) as session:
        parts = TrainArguments(session)
        learn(0, **vars(parts))
        parts.environment.engine.load_weights(make_walker().state_dict(), version=0)
        with pytest.raises(RuntimeError, match=r"version \[0\], the policy's is 1"):
            learn(1, **vars(parts))


class VineTrainer:
    """Credits nothing but one vine, of its own making, from the middle of the first rollout."""

    def __init__(self, weight: float):
        self.weight = weight

    def assign(self, groups: Any, *, seed: int) -> Assigned:
        zero = [[replace(c, advantages=(0.0,) * len(c.advantages)) for c in cs] for cs in self.credits(groups)]
        vine = max((rollout for group in groups for rollout in group), key=lambda rollout: rollout.num_segments)
        start = vine.boundaries[1]
        mask = tuple(t >= start for t in range(len(vine.token_ids)))
        credit = replace(zero[0][0], boundaries=vine.boundaries, advantages=(1.0,) * len(vine.token_ids))
        return Assigned(zero, {}, (ExtraRollout(replace(vine, action_mask=mask), credit, self.weight, root=0),))

    def credits(self, groups: Any) -> Any:
        return VinePPO(VinePPOConfig(num_vines=1), CreditContext(make_environment())).assign(groups, seed=0).credits


def test_extra_rollouts_are_trained_on_with_their_weight(tmp_path):
    """Nothing else has an advantage, so the gradient is the vine's, and goes as its weight."""
    tree = VINEPPO | {"train": {"num_iterations": 1, "num_epochs": 1, "advantage_norm": "off"}}
    constant = {"loss_aggregation": "constant", "loss_length": 12}
    tree["learner"] = {"precision": "float32", "kl_coef": 0.0, "optim": {"lr": 0.0}, **constant}
    norms = []
    for weight in (1.0, 0.5, 0.0):
        with open_walk(tmp_path, tree) as session:
            learn(0, **vars(TrainArguments(session, VineTrainer(weight))))
            norms.append(session.log.pending()["optim/grad_norm"])
    assert norms[0] > 0
    assert norms[1:] == pytest.approx([norms[0] / 2, 0.0])


def test_samples_carry_the_engine_logprobs_and_the_credit():
    environment = make_environment()
    groups = sample_groups(environment, environment.task.sample(2, seed=1), SAMPLING, seed=2)
    credits = VinePPO(VinePPOConfig(num_vines=2), CreditContext(environment)).assign(groups, seed=3).credits
    samples = to_samples(groups, credits)
    assert len(samples) == 8
    for sample, rollout in zip(samples, [r for g in groups for r in g], strict=True):
        assert sample.response_ids == rollout.token_ids
        assert all(math.isfinite(logprob) and logprob <= 0 for logprob in sample.sampling_logprobs)


def test_prompts_that_do_not_fit_are_skipped_and_none_left_is_an_error():
    environment = replace(make_environment(), max_prompt_tokens=0)
    with pytest.raises(UserError, match="all 2 prompts are longer than 0 tokens"):
        sample_groups(environment, environment.task.sample(2, seed=1), SAMPLING, seed=2)
