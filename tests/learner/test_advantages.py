import pytest
import torch

from vineppo.learner.advantages import normalize_advantages
from vineppo.types import Sample


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
