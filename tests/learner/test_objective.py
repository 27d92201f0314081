"""A loss of one's own is one function; a learner elsewhere, or on a share of a minibatch, takes the same."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from learner_process import reward_weighted_nll, serve
from tiny_learner import (
    column,
    expect_equal,
    gradients,
    log_softmax,
    make_learner,
    make_model,
    make_samples,
    of_targets,
)

from vineppo.learner.objective import Counts
from vineppo.learner.policy_loss import policy_loss
from vineppo.protocols import Learner


@pytest.mark.parametrize("microbatch_tokens", [1, 40, 10**6])
def test_a_loss_of_one_s_own_is_learnt_from(microbatch_tokens):
    model, samples = make_model(), make_samples()
    losses = torch.cat([-column(s.advantages) * of_targets(log_softmax(model, s), s) for s in samples])
    learner = make_learner(microbatch_tokens=microbatch_tokens)
    expected = torch.autograd.grad(losses.mean(), list(model.parameters()))
    expect_equal(gradients(learner, samples, reward_weighted_nll), expected)
    metrics = learner.step(samples, reward_weighted_nll)
    assert metrics["rwr/loss"] == pytest.approx(losses.mean().item(), abs=1e-12)
    assert metrics["rwr/loss_max"] == pytest.approx(losses.max().item(), abs=1e-12)


def test_gradients_of_shares_add_up_to_the_whole_minibatch_s():
    samples = make_learner().score(make_samples())
    counts = Counts.of([(sample,) for sample in samples])
    whole = gradients(make_learner(), samples)
    shares = [gradients(make_learner(), share, counts=counts) for share in (samples[:3], samples[3:])]
    expect_equal(whole, [one + other for one, other in zip(*shares, strict=True)])


class RemoteLearner:
    """The protocol, and nothing behind it but a pipe."""

    def __init__(self, connection: Any):
        self.connection = connection

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.connection.send((name, args))
            return self.connection.recv()

        return call


def drive(learner: Learner, folder: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """As a method does: a checkpoint in the middle included, from which it goes on."""
    samples = learner.score(make_samples())
    metrics = [learner.step(samples, policy_loss)]
    learner.save(folder)
    learner.load(folder)
    metrics += [learner.step(samples[:4], reward_weighted_nll), learner.step(samples, policy_loss)]
    metrics += [learner.mismatch(samples), learner.divergence(samples), learner.memory()]
    return metrics, {name: tensor.clone() for name, tensor in learner.weights().items()}


def test_a_learner_in_another_process_is_the_one_in_this_to_the_bit(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        remote: Any = RemoteLearner(ours)
        (metrics, weights), (other_metrics, other_weights) = (
            drive(learner, tmp_path) for learner in (make_learner(reference=make_model(1), lr=0.01), remote)
        )
    finally:
        torch.set_num_threads(num_threads)
        ours.send(None)
        process.join(timeout=30)
    assert metrics == other_metrics
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())
    assert any(not torch.equal(weights[name], tensor) for name, tensor in make_model().state_dict().items())
