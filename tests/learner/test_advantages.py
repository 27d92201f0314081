import pytest
import torch

from vineppo.learner.advantages import normalize_advantages, scale_advantages
from vineppo.sample import Sample


def test_whitening_is_over_all_tokens_of_the_iteration():
    samples = [Sample((1,), (2,) * n, tuple(float(i + n) for i in range(n)), (0.0,) * n) for n in (1, 3, 7)]
    flat = torch.tensor([a for s in normalize_advantages(samples) for a in s.advantages], dtype=torch.float64)
    assert flat.mean().item() == pytest.approx(0, abs=1e-12)
    assert flat.std().item() == pytest.approx(1, abs=1e-6)
    reversed_flat = [a for s in reversed(normalize_advantages(samples[::-1])) for a in s.advantages]
    assert reversed_flat == pytest.approx(flat.tolist(), abs=1e-12)


def test_constant_advantages_become_zero_not_nan():
    samples = [Sample((1,), (2, 3), (0.0, 0.0), (0.0, 0.0))]
    assert normalize_advantages(samples)[0].advantages == (0.0, 0.0)


def test_scaling_divides_all_by_one_number_and_takes_no_mean_off():
    """The root of the weighted mean square over actions; a token of weight 2 counts as two."""
    advantages, weights = [(1.0, -2.0, 9.0), (3.0,)], [(1.0, 2.0, 5.0), (1.0,)]
    masks = [(True, True, False), None]
    samples = [
        Sample((1,), (2,) * len(a), a, (0.0,) * len(a), weights=w, action_mask=mask)
        for a, w, mask in zip(advantages, weights, masks, strict=True)
    ]
    scale = ((1 * 1 + 2 * 4 + 1 * 9) / 4) ** 0.5
    for sample, scaled in zip(samples, scale_advantages(samples), strict=True):
        assert scaled.advantages == pytest.approx([a / scale for a in sample.advantages], abs=1e-8)
    unweighted = [Sample((1,), (2, 3), (3.0, -4.0), (0.0, 0.0))]
    assert scale_advantages(unweighted)[0].advantages == pytest.approx([a / 12.5**0.5 for a in (3.0, -4.0)])


def test_advantages_that_are_alike_are_not_blown_up():
    """What a fitted baseline leaves where all responses earned the same; with one that differs they are scaled."""
    alike = [Sample((1,), (2,) * 4, (a, a, 1.1 * a, a), (0.0,) * 4) for a in (1e-3, 1.2e-3)]
    assert scale_advantages(alike) == alike
    differing = [*alike, Sample((1,), (2,), (-4e-3,), (0.0,))]
    flat = [a for sample in scale_advantages(differing) for a in sample.advantages]
    assert sum(a * a for a in flat) / len(flat) == pytest.approx(1, abs=0.01)


def test_advantages_of_zero_stay_zero():
    samples = [Sample((1,), (2, 3), (0.0, 0.0), (0.0, 0.0))]
    assert scale_advantages(samples) == samples
