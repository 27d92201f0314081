"""top_p and top_k: what they keep, and log-probs within it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
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

from vineppo.engine import ENGINES, engine_inputs
from vineppo.learner.policy_loss import policy_loss
from vineppo.models.make import make_symbol_tokenizer
from vineppo.sample import Sample, make_sample
from vineppo.types import Request, SamplingParams


def naive_logmass(row_V: torch.Tensor, target: int, top_p: float, top_k: int) -> torch.Tensor:
    """Of the target and the smallest set of likeliest tokens that reaches top_p of what top_k leaves."""
    order = sorted(range(len(row_V)), key=lambda token: -row_V[token].item())[: top_k or None]
    whole = math.fsum(row_V[token].exp().item() for token in order) if top_k else 1.0
    kept, mass = set(), 0.0
    for token in order:
        if mass >= top_p * whole:
            break
        kept.add(token)
        mass += row_V[token].exp().item()
    return torch.stack([row_V[token].exp() for token in sorted(kept | {target})]).sum().log()


def naive_logmasses(model: Any, sample: Sample, top_p: float, top_k: int) -> torch.Tensor:  # [L]
    rows = zip(log_softmax(model, sample), sample.response_ids, strict=True)
    return torch.stack([naive_logmass(row, target, top_p, top_k) for row, target in rows])


NUCLEI = pytest.mark.parametrize(("top_p", "top_k"), [(0.8, 0), (0.3, 0), (1.0, 5), (0.7, 6)])


@NUCLEI
def test_renormalised_log_probs_are_those_of_what_is_kept(top_p, top_k):
    model, reference = make_model(), make_model(1)
    learner = make_learner(model, reference, top_p=top_p, top_k=top_k, renormalize_nucleus=True)
    plain = make_learner(model, reference, top_p=top_p, top_k=top_k)
    for sample, whole in zip(learner.score(make_samples()), plain.score(make_samples()), strict=True):
        for scored_by, found, full in (
            (model, sample.old_logprobs, whole.old_logprobs),
            (reference, sample.ref_logprobs, whole.ref_logprobs),
        ):
            masses = naive_logmasses(scored_by, sample, top_p, top_k)
            expected = of_targets(log_softmax(scored_by, sample), sample)
            assert full == pytest.approx(expected.tolist(), abs=1e-12)
            assert found == pytest.approx((expected - masses).tolist(), abs=1e-12)
        assert sample.nucleus_logmass == whole.nucleus_logmass
        assert sample.nucleus_logmass == pytest.approx(naive_logmasses(model, sample, top_p, top_k).tolist(), abs=1e-12)


@NUCLEI
def test_the_gradient_of_a_renormalised_step_is_that_within_the_nucleus(top_p, top_k):
    """What is kept is a constant; its mass is not."""
    model = make_model()
    options = {"top_p": top_p, "top_k": top_k, "renormalize_nucleus": True}
    samples = make_learner(model, **options).score(make_samples())
    loss = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        new = of_targets(log_softmax(model, sample), sample) - naive_logmasses(model, sample, top_p, top_k)
        loss = loss - (column(sample.advantages) * (new - new.detach()).exp()).sum()
    loss = loss / sum(len(sample.response_ids) for sample in samples)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    expect_equal(gradients(make_learner(**options), samples), expected, within=1e-6)  # norm layers are in fp32


def test_without_top_p_and_top_k_there_is_nothing_to_renormalise():
    samples = make_learner(renormalize_nucleus=True).score(make_samples())
    assert samples == make_learner().score(make_samples())
    assert all(set(sample.nucleus_logmass or ()) == {0.0} for sample in samples)


@pytest.mark.parametrize("renormalize", [False, True])
def test_importance_is_policy_over_engine_whether_renormalised_or_not(renormalize):
    """The engine's log-probs are of the full softmax: where it agrees with the training forward, the weight is 1."""
    learner = make_learner(top_p=0.6, renormalize_nucleus=renormalize, max_importance=10.0)
    full = make_learner().score(make_samples())
    agreeing = [replace(sample, sampling_logprobs=sample.old_logprobs) for sample in full]
    samples = learner.score(agreeing)
    assert learner.step(samples, policy_loss)["policy/importance_max"] == pytest.approx(1, abs=1e-9)
    plain = make_learner(top_p=0.6, renormalize_nucleus=renormalize)
    learner = make_learner(top_p=0.6, renormalize_nucleus=renormalize, max_importance=10.0)
    expect_equal(gradients(learner, samples), gradients(plain, samples))


def sample_from(engine_name: str, model: Any, params: SamplingParams) -> list[Sample]:
    engine_class, tokenizer = ENGINES[engine_name], make_symbol_tokenizer("abcdefghijklmnopq")
    engine = engine_class(engine_class.Config(dtype="float32"), *engine_inputs(model, tokenizer))
    requests = [Request(sample.prompt_ids, 12, seed) for seed, sample in enumerate(make_samples(16))]
    completions = engine.generate(requests, params, purpose="policy", keep=True)
    return [
        replace(make_sample(request.prefix_ids, completion.token_ids), sampling_logprobs=completion.logprobs)
        for request, completion in zip(requests, completions, strict=True)
    ]


@pytest.mark.parametrize("engine", ["torch", "hf"])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (0.9, 7)])
@pytest.mark.parametrize("renormalize", [False, True])
def test_the_mismatch_with_a_real_engine_is_rounding(engine, top_p, top_k, renormalize):
    model = make_model(dtype=torch.float32)
    learner = make_learner(model, top_p=top_p, top_k=top_k, renormalize_nucleus=renormalize)
    samples = learner.score(sample_from(engine, model, learner.sampling))
    metrics = learner.mismatch(samples)
    assert 0 <= metrics["policy/engine_logprob_diff_mean"] <= metrics["policy/engine_logprob_diff_max"] < 1e-4
    masses = torch.cat([naive_logmasses(model, sample, top_p, top_k).exp() for sample in samples])
    assert metrics["policy/kept_mass_mean"] == pytest.approx(masses.mean().item(), abs=1e-6)
    if top_p < 1:
        assert 0.5 < metrics["policy/kept_mass_mean"] < 0.99
    # a wrong log-prob is seen
    first = samples[0]
    wrong = replace(first, sampling_logprobs=(first.sampling_logprobs[0] + 0.5, *first.sampling_logprobs[1:]))
    assert learner.mismatch([wrong, *samples[1:]])["policy/engine_logprob_diff_max"] == pytest.approx(0.5, abs=1e-4)
