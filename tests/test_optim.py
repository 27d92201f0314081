import math

import pytest
import torch

from vineppo.optim import OptimConfig, clip_gradients, learning_rate, make_optimizer


def rates(total: int, **options) -> list[float]:
    return [learning_rate(OptimConfig(lr=1.0, **options), step, total) for step in range(total)]


def test_warm_up_rises_linearly_and_no_step_has_rate_0():
    for schedule in ("constant", "linear", "cosine"):
        assert rates(100, schedule=schedule, warmup_ratio=0.05)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
        assert min(rates(100, schedule=schedule, warmup_ratio=0.05)) > 0


def test_linear_and_cosine_fall_to_their_end_by_their_own_formula():
    linear, cosine = (rates(100, schedule=s, warmup_ratio=0.0, min_lr_ratio=0.1) for s in ("linear", "cosine"))
    for step in range(100):
        assert linear[step] == pytest.approx(0.1 + 0.9 * (1 - step / 100))
        assert cosine[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * step / 100)))


def test_steps_beyond_the_planned_ones_stay_at_the_end():
    assert learning_rate(OptimConfig(lr=1.0, min_lr_ratio=0.1), 500, 100) == pytest.approx(0.1)


def test_weight_decay_shrinks_matrices_only():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(OptimConfig(lr=0.1, weight_decay=0.5), [matrix, vector])
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert matrix.tolist() == [[pytest.approx(0.95)] * 2] * 2
    assert vector.tolist() == [1.0, 1.0]


def test_one_adamw_step_is_the_textbook_one():
    """First step: both moments are bias-corrected to g and g^2, so the step is lr * g / (|g| + eps)."""
    parameter = torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    optimizer = make_optimizer(OptimConfig(lr=0.01, eps=0.1), [parameter])
    parameter.grad = torch.tensor([[0.3, -4.0]], dtype=torch.float64)
    optimizer.step()
    expected = [1.0 - 0.01 * 0.3 / 0.4, -2.0 + 0.01 * 4.0 / 4.1]
    assert parameter[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_the_global_norm_is_clipped_and_returned_as_it_was():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() + parameters[1].grad.tolist() == pytest.approx([0.6, 0.0, 0.8], rel=1e-5)
    assert clip_gradients(parameters, 10.0) == pytest.approx(1.0, rel=1e-5)
    assert parameters[1].grad.item() == pytest.approx(0.8, rel=1e-5)
