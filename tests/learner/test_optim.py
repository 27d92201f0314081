import copy
import math

import pytest
import torch

from vineppo.learner.config import OptimConfig
from vineppo.learner.optim import clip_gradients, learning_rate, load_moments, make_optimizer


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
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() + parameters[1].grad.tolist() == pytest.approx([0.6, 0.0, 0.8], rel=1e-5)
    assert clip_gradients(parameters, 10.0).item() == pytest.approx(1.0, rel=1e-5)
    assert parameters[1].grad.item() == pytest.approx(0.8, rel=1e-5)


def stepped(shapes=((3, 2), (2,))):
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = make_optimizer(OptimConfig(lr=0.1), parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer, {parameter: f"p{i}" for i, parameter in enumerate(parameters)}


BROKEN = {
    "another shape": lambda state: state["state"][0].update(exp_avg=torch.zeros(2, 2)),
    "fewer numbers": lambda state: state["state"][1].update(exp_avg_sq=torch.zeros(1)),
    "another precision": lambda state: state["state"][0].update(exp_avg=torch.zeros(3, 2, dtype=torch.float64)),
    "not finite": lambda state: state["state"][0]["exp_avg"].fill_(torch.nan),
    "negative squares": lambda state: state["state"][0]["exp_avg_sq"].fill_(-1.0),
    "steps that are not finite": lambda state: state["state"][1].update(step=torch.tensor(torch.inf)),
    "steps of many": lambda state: state["state"][1].update(step=torch.ones(2)),
    "steps that are no tensor": lambda state: state["state"][1].update(step=3),
    "a moment too few": lambda state: state["state"][0].pop("exp_avg_sq"),
    "a moment too many": lambda state: state["state"][0].update(max_exp_avg_sq=torch.zeros(3, 2)),
    "a parameter too many": lambda state: state["state"].update({2: state["state"][1]}),
    "a group too few": lambda state: state["param_groups"].pop(),
    "other members": lambda state: state["param_groups"][0].update(params=[0, 1]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_moments_that_are_not_this_model_s_are_refused_and_nothing_is_changed(broken):
    optimizer, names = stepped()
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    BROKEN[broken](state)
    with pytest.raises(ValueError, match="the optimizer state"):
        load_moments(optimizer, names, state)
    assert str(optimizer.state_dict()) == str(before)


def test_a_moment_that_is_wrong_is_named():
    optimizer, names = stepped()
    other, _ = stepped(((3, 4), (2,)))
    with pytest.raises(ValueError, match=r"of p0 has a exp_avg of torch.float32\[3, 4\] and not torch.float32\[3, 2\]"):
        load_moments(optimizer, names, other.state_dict())


def test_moments_come_back_and_the_recipe_s_rates_stay():
    optimizer, _ = stepped()
    parameters = [torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.zeros(2))]
    resumed = make_optimizer(OptimConfig(lr=0.5, betas=(0.5, 0.6)), parameters)
    load_moments(resumed, dict.fromkeys(parameters, ""), optimizer.state_dict())
    assert str(resumed.state_dict()["state"]) == str(optimizer.state_dict()["state"])
    assert [(group["lr"], group["betas"]) for group in resumed.param_groups] == [(0.5, (0.5, 0.6))] * 2
