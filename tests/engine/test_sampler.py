"""What is drawn, against the exact distribution and against transformers' warpers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vineppo.engine.sampler import FIRST_CANDIDATES, as_int64, draw_uniforms, nucleus_floor, sample
from vineppo.types import SamplingParams

DRAWS = 100_000
NO_IDS: Any = None  # transformers' warpers take the tokens so far and do not look at them


def exact_distribution(logits_V, params):
    scores = TemperatureLogitsWarper(float(params.temperature))(NO_IDS, logits_V[None].clone())
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(NO_IDS, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(NO_IDS, scores)
    return scores.softmax(-1)[0].double()


def draw_many(logits_V, params, n=DRAWS):
    """In parts, as N x 2000 float64 numbers would be gigabytes."""
    parts = []
    for seeds_N in torch.arange(n).split(10_000):
        uniforms_N = draw_uniforms(seeds_N, torch.zeros_like(seeds_N))
        parts.append(sample(logits_V[None].clone(), torch.zeros_like(seeds_N), uniforms_N, params)[:2])
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


@pytest.mark.parametrize("vocab", [50, 2000])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1, 1, 0), (0.6, 1, 0), (1, 0.9, 0), (0.6, 0.9, 0), (1.5, 0.99, 0), (1, 1, 7), (0.7, 0.8, 40), (1, 1e-6, 0)],
)
def test_frequencies_are_those_of_the_exact_distribution(vocab, temperature, top_p, top_k):
    torch.manual_seed(vocab)
    logits_V = torch.randn(vocab) * 2
    params = SamplingParams(temperature, top_p, top_k)
    expected_V = exact_distribution(logits_V, params)
    tokens_N, logprobs_N = draw_many(logits_V, params)
    counts_V = torch.bincount(tokens_N, minlength=vocab)
    assert counts_V[expected_V == 0].sum() == 0, "a token from outside of the nucleus"
    assert torch.allclose(logprobs_N, (logits_V / temperature).log_softmax(-1)[tokens_N], atol=1e-5)

    common_V = expected_V * DRAWS >= 5  # the others are pooled, as the test asks for
    observed = torch.cat((counts_V[common_V].double(), counts_V[~common_V].sum()[None].double()))
    expected = torch.cat((expected_V[common_V], expected_V[~common_V].sum()[None])) * DRAWS
    observed, expected = observed[expected > 0].numpy(), expected[expected > 0].numpy()
    if len(observed) > 1:
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def sorted_floor(probs_V, params):
    """The last kept probability when all are sorted: top_k first, then top_p of what is left."""
    kept = sorted(probs_V.tolist(), reverse=True)[: params.top_k or None]
    enough = params.top_p * (sum(kept) if params.top_k else 1.0)
    total = 0.0
    for probability in kept:
        total += probability
        if total >= enough:
            return probability
    return kept[-1]


def make_probs(vocab, dtype=torch.float64):
    """From peaked to nearly flat, in no order; all probabilities of a row differ."""
    logits_NV = torch.randn(12, vocab, dtype=dtype, generator=torch.Generator().manual_seed(vocab))
    return (logits_NV * torch.linspace(8, 0.05, 12)[:, None]).softmax(-1)


@pytest.mark.parametrize("vocab", [50, 5000])
@pytest.mark.parametrize(
    ("top_p", "top_k"), [(0.9, 0), (0.3, 0), (0.999, 0), (1, 7), (1, 300), (0.8, 40), (1e-6, 0), (0.5, 9000)]
)
def test_the_floor_of_the_nucleus_is_that_of_sorting(vocab, top_p, top_k):
    params = SamplingParams(0.7, top_p, top_k)
    probs_NV = make_probs(vocab)
    floor_N = nucleus_floor(probs_NV, params)
    for probs_V, floor in zip(probs_NV, floor_N, strict=True):
        assert floor == sorted_floor(probs_V, params)
    if vocab == 5000 and top_p in (0.9, 0.999):
        sizes = (probs_NV >= floor_N[:, None]).sum(-1)
        assert sizes.min() < FIRST_CANDIDATES < 16 * FIRST_CANDIDATES < sizes.max()  # found at every width
    for row in (0, 6, 11):
        assert nucleus_floor(probs_NV[row : row + 1], params) == floor_N[row]


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (0.6, 0), (1, 7), (0.8, 200)])
def test_what_is_drawn_is_what_the_floor_keeps(top_p, top_k):
    """The learner's nucleus is the engine's: no draw is below it, and its likeliest and its last token are drawn."""
    params = SamplingParams(1, top_p, top_k)
    logits_V = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 3
    probs_V = logits_V.softmax(-1)
    floor = nucleus_floor(probs_V[None], params)[0]
    tokens_N, _ = draw_many(logits_V, params, n=20_000)
    assert probs_V[tokens_N].min() >= floor
    edges_N, *_ = sample(
        logits_V[None].clone(), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1 - 2**-53]).double(), params
    )
    assert probs_V[edges_N].tolist() == [probs_V.max(), floor]


@pytest.mark.parametrize("num_alternatives", [1, 100, 5000])
@pytest.mark.parametrize(("top_p", "top_k"), [(1, 0), (0.9, 0), (0.999, 0), (1, 7), (0.8, 400), (1e-6, 0)])
def test_alternatives_are_what_can_be_drawn_whatever_the_width_of_the_nucleus(top_p, top_k, num_alternatives):
    params = SamplingParams(0.7, top_p, top_k, num_alternatives=num_alternatives)
    logits_SV = make_probs(5000).log().float()
    uniforms_S = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens_N, logprobs_N, alternatives = sample(logits_SV.clone(), torch.arange(12), uniforms_S, params)
    plain_N = sample(logits_SV.clone(), torch.arange(12), uniforms_S, replace(params, num_alternatives=0))
    assert (tokens_N.tolist(), logprobs_N.tolist()) == (plain_N.tokens_N.tolist(), plain_N.logprobs_N.tolist())
    assert plain_N.alternatives is None
    assert alternatives is not None
    for logits_V, token, pairs in zip(logits_SV, tokens_N.tolist(), alternatives, strict=True):
        expected_V = exact_distribution(logits_V, params)
        ids, probs = [token for token, _ in pairs], torch.tensor([logprob for _, logprob in pairs]).double().exp()
        support = int((expected_V > 0).sum())
        assert abs(len(ids) - min(num_alternatives, support)) <= (top_p == 0.999)  # where float32 rounds the last one
        assert torch.allclose(probs, expected_V[ids], rtol=1e-3)
        assert torch.allclose(probs, expected_V.sort(descending=True).values[: len(ids)], rtol=1e-3)
        if num_alternatives > support:
            assert token in ids


def test_of_equal_logits_those_are_reported_that_can_be_drawn():
    """Half-precision logits tie often, and top_k keeps only some of the tied."""
    logits_SV, params = torch.zeros(1, 1000), SamplingParams(top_k=5, num_alternatives=9)
    uniforms_N = torch.linspace(0, 1 - 1e-9, 50, dtype=torch.float64)
    tokens_N, _, alternatives = sample(logits_SV, torch.zeros(50, dtype=torch.int64), uniforms_N, params)
    assert alternatives is not None
    assert {token for token, _ in alternatives[0]} == set(tokens_N.tolist())
    assert [logprob for _, logprob in alternatives[0]] == pytest.approx([-np.log(5)] * 5)


def test_uniforms_are_uniform_and_independent_of_each_other():
    seeds_N = torch.arange(50_000)
    first_N, second_N = (draw_uniforms(seeds_N, torch.full_like(seeds_N, i)) for i in (0, 1))
    indices_N = draw_uniforms(torch.full_like(seeds_N, as_int64(2**63 + 5)), seeds_N)
    for numbers_N in (first_N, second_N, indices_N):
        assert numbers_N.min() >= 0
        assert numbers_N.max() < 1
        assert stats.kstest(numbers_N.numpy(), "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(numbers_N[1:].numpy(), numbers_N[:-1].numpy())[0, 1]) < 0.02
    assert abs(np.corrcoef(first_N.numpy(), second_N.numpy())[0, 1]) < 0.02
    assert len(torch.cat((first_N, second_N, indices_N)).unique()) == 150_000


def test_the_hash_is_splitmix64():
    """First outputs for state 0 are published with xoshiro's reference code: 0xE220A8397B1DCDAF."""
    from vineppo.engine.sampler import _mix

    assert int(_mix(torch.tensor([0]))[0]) == as_int64(0xE220A8397B1DCDAF)


def test_a_row_is_drawn_alike_in_any_company():
    torch.manual_seed(0)
    logits_SV = torch.randn(64, 3000) * torch.linspace(0.1, 6, 64)[:, None]  # nuclei of 1 to nearly all tokens
    uniforms_S = torch.rand(64, dtype=torch.float64)
    for params in (SamplingParams(), SamplingParams(0.7, 0.9), SamplingParams(1, 0.95, 500), SamplingParams(0)):
        together_S, *_ = sample(logits_SV.clone(), torch.arange(64), uniforms_S, params)
        for row in range(0, 64, 5):
            alone, *_ = sample(logits_SV[row][None].clone(), torch.tensor([0]), uniforms_S[row][None], params)
            assert alone == together_S[row]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_are_possible_tokens(uniform):
    logits_V = torch.full((1000,), -torch.inf)
    logits_V[[17, 900]] = torch.tensor([0.0, 1.0])
    for params in (SamplingParams(), SamplingParams(top_p=0.99), SamplingParams(top_k=3)):
        token, *_ = sample(logits_V[None].clone(), torch.tensor([0]), torch.tensor([uniform]).double(), params)
        assert token.item() in (17, 900)


def test_seeds_of_any_size_fit():
    assert [as_int64(seed) for seed in (0, 2**63 - 1, 2**63, 2**64 - 1, -1)] == [0, 2**63 - 1, -(2**63), -1, -1]
