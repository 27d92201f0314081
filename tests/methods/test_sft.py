"""Maximum likelihood."""

from __future__ import annotations

import pytest
import torch
from tiny_learner import (
    AGGREGATIONS,
    expect_equal,
    gradients,
    log_softmax,
    make_learner,
    make_model,
    make_samples,
    of_targets,
)

from vineppo.methods.sft import nll_loss


@pytest.mark.parametrize("options", AGGREGATIONS, ids=str)
def test_maximum_likelihood_is_the_mean_that_the_recipe_asks_for(options):
    model, samples = make_model(), make_samples()
    nlls = [-of_targets(log_softmax(model, sample), sample) for sample in samples]
    if not options:
        loss = torch.cat(nlls).mean()
    elif options["loss_aggregation"] == "sequence":
        loss = torch.stack([nll.mean() for nll in nlls]).mean()
    else:
        loss = torch.cat(nlls).sum() / 9 / len(samples)
    learner = make_learner(**options)
    expect_equal(gradients(learner, samples, nll_loss), torch.autograd.grad(loss, list(model.parameters())))
    assert learner.step(samples, nll_loss)["sft/nll"] == pytest.approx(loss.item(), abs=1e-12)


def test_maximum_likelihood_learns_what_it_is_shown():
    learner = make_learner(lr=0.01)
    losses = [learner.step(make_samples(), nll_loss)["sft/nll"] for _ in range(30)]
    assert losses[-1] < losses[0] / 2
