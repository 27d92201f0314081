"""Vines in the loop, all of it real: one optimizer step by hand, minibatches, and recipes that would break weights."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from coin_walk import TOKENIZER, TREE, make_environment, make_walker, open_walk

from vineppo.credit.common import CreditContext
from vineppo.credit.tree import TreeConfig, TreeCredit
from vineppo.learner.optimizer_step import OptimizerStep
from vineppo.methods import kind_of
from vineppo.methods.samples import to_samples, with_descendants
from vineppo.methods.train import run_train
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.runs.recipe import make_recipe
from vineppo.types import Assigned, Group, UserError

SAMPLING = SamplingConfig(prompts_per_iteration=4, group_size=4, max_new_tokens=12)
RECIPE: dict[str, Any] = {
    "credit": {"name": "tree", "num_vines": 2},
    "train": {"num_iterations": 1, "num_epochs": 1, "minibatch_size": 16, "advantage_norm": "scale"},
    "learner": {"precision": "float32", "kl_coef": 0.0, "optim": {"lr": 0.0, "max_grad_norm": 1e9}},
}


class Recorder:
    """What was credited in a run, the gradients of the policy's head, and the metrics at the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, recipe: dict[str, Any]):
        self.groups: list[Group] = []
        self.assigned = Assigned([], {})
        self.gradients: list[torch.Tensor] = []
        self.metrics: dict[str, float] = {}
        assign = TreeCredit.assign

        def record(credit: TreeCredit, groups: Any, *, seed: int) -> Assigned:
            self.groups, self.assigned = groups, assign(credit, groups, seed=seed)
            return self.assigned

        with open_walk(folder, recipe) as session:
            monkeypatch.setattr(TreeCredit, "assign", record)
            monkeypatch.setattr(
                OptimizerStep,
                "_apply",
                lambda step, lr: self.gradients.append(session.setup.policy.lm_head.weight.grad.clone()),
            )
            monkeypatch.setattr(session.log, "write", lambda done, more: self.metrics.update(session.log.pending()))
            run_train(session.setup.recipe, session)  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ["all", "first"])
def test_one_step_is_the_weighted_sum_by_hand(tmp_path, monkeypatch, train):
    """The walker's logits are the rows of its head times one hidden state of ones, whatever came before."""
    run = Recorder(monkeypatch, tmp_path, {**RECIPE, "credit": {"name": "tree", "num_vines": 2, "train": train}})
    pairs = [
        *chain.from_iterable(zip(*rows, strict=True) for rows in zip(run.groups, run.assigned.credits, strict=True)),
        *((one.rollout, one.credit) for one in run.assigned.extra),
    ]
    tokens = [
        (token, advantage, weight)
        for rollout, credit in pairs
        for token, advantage, weight, is_action in zip(
            rollout.token_ids,
            credit.advantages,
            credit.weights or (),
            rollout.action_mask or [True] * len(rollout.token_ids),
            strict=True,
        )
        if is_action
    ]
    total = sum(weight for _, _, weight in tokens)
    scale = (sum(weight * advantage**2 for _, advantage, weight in tokens) / total) ** 0.5
    probabilities = make_walker().lm_head.weight.sum(dim=1).softmax(0)
    expected = torch.zeros(len(TOKENIZER))
    for token, advantage, weight in tokens:
        expected -= weight * advantage / scale / total * (torch.eye(len(TOKENIZER))[token] - probabilities)
    assert len(run.gradients) == 1
    assert run.gradients[0].mean(dim=1).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.abs().max() > 1e-3


def test_a_run_has_as_many_steps_as_without_vines_and_says_what_they_cost(tmp_path, monkeypatch):
    run = Recorder(
        monkeypatch, tmp_path, {**RECIPE, "train": {**RECIPE["train"], "num_epochs": 2, "minibatch_size": 8}}
    )
    rollouts = [rollout for group in run.groups for rollout in group]
    masks = [one.rollout.action_mask or () for one in run.assigned.extra]
    assert run.metrics["optim/num_steps"] == len(run.gradients) == 2 * 2
    assert run.metrics["rollouts/num_extra"] == len(masks) > 8
    num_own = sum(len(rollout.token_ids) for rollout in rollouts)
    assert run.metrics["policy/num_actions"] == num_own + sum(map(sum, masks))
    num_prompt_ids = len(rollouts[0].prompt_ids) * (len(rollouts) + len(masks))
    assert run.metrics["policy/num_forwarded"] == num_prompt_ids + num_own + sum(map(len, masks))


def test_a_minibatch_has_the_vines_of_its_rollouts():
    environment = make_environment()
    groups = sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)
    assigned = TreeCredit(TreeConfig(), CreditContext(environment)).assign(groups, seed=3)
    families = with_descendants(to_samples(groups, assigned.credits, assigned.extra), assigned.extra)
    assert [family[0].response_ids for family in families] == [r.token_ids for group in groups for r in group]
    assert sum(len(family) - 1 for family in families) == len(assigned.extra) > 0
    for root, *vines in families:
        assert not root.is_extra
        for vine in vines:
            start = (vine.action_mask or ()).index(True)
            assert vine.is_extra
            assert vine.response_ids[:start] == root.response_ids[:start]


def test_what_follows_a_vine_s_first_segment_is_not_forwarded():
    environment = make_environment()
    groups = sample_groups(environment, environment.task.sample(4, seed=1), SAMPLING, seed=2)
    assigned = TreeCredit(TreeConfig(train="first"), CreditContext(environment)).assign(groups, seed=3)
    samples = to_samples(groups, assigned.credits, assigned.extra)[16:]
    for one, sample in zip(assigned.extra, samples, strict=True):
        assert sample.response_ids == one.rollout.token_ids[: len(sample.response_ids)]
        assert sample.num_actions == sum(one.rollout.action_mask or ())
        assert sample.action_mask is not None
        assert sample.action_mask[-1]
    assert sum(len(sample.response_ids) for sample in samples) < sum(
        len(one.rollout.token_ids) for one in assigned.extra
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {**RECIPE["train"], "advantage_norm": "iteration"}}, 'set it to "scale" or "off"'),
        ({"learner": {"loss_aggregation": "sequence"}}, 'set it to "token" or "constant"'),
        ({"sampling": {"prompts_per_iteration": 4, "group_size": 1, "max_new_tokens": 9}}, "give at least 2"),
        ({"credit": {"name": "tree", "num_vines": 2, "shape": "tree"}}, "give num_vines as a list"),
        ({"credit": {"name": "tree", "num_vines": [9] * 9, "shape": "tree"}}, "more than 4096 responses"),
        ({"credit": {"name": "tree", "num_vines": [1], "shape": "tree", "train": "first"}}, 'with shape = "vines"'),
    ],
)
def test_what_would_break_the_weights_is_refused_with_the_recipe(changes, message):
    recipe = {**TREE, **RECIPE, **changes}
    with pytest.raises(UserError) as caught:
        make_recipe(recipe, kind=kind_of(recipe), source="my.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
