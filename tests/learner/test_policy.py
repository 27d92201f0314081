"""What the learner says of samples, and that it goes on where it was."""

from __future__ import annotations

import pytest
import torch
from tiny_learner import (
    gradients,
    log_softmax,
    make_learner,
    make_model,
    make_samples,
    make_scored,
    of_targets,
    snapshot,
)

from vineppo.learner.policy_loss import policy_loss
from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.types import UserError


def test_divergence_is_the_sum_of_k3_over_a_response():
    model, reference = make_model(), make_model(1)
    learner = make_learner(model, reference, kl_clamp=0.01)  # which is the loss's, not the metric's
    kls = []
    for sample in make_samples():
        new, ref = (of_targets(log_softmax(of, sample), sample) for of in (model, reference))
        kls.append(((ref - new).exp() - 1 - (ref - new)).sum().item())
    assert learner.divergence(make_samples()) == {"eval/kl_reference": pytest.approx(sum(kls) / len(kls))}
    assert make_learner(model, model).divergence(make_samples()) == {"eval/kl_reference": 0.0}
    assert make_learner(model).divergence(make_samples()) == {}


def test_scores_are_the_forward_s_log_probs_and_do_not_depend_on_company():
    learner = make_learner(reference=make_model(1))
    together = learner.score(make_samples())
    alone = [learner.score([sample])[0] for sample in make_samples()]
    for one, other in zip(together, alone, strict=True):
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-12)
        assert one.ref_logprobs == pytest.approx(other.ref_logprobs, abs=1e-12)
        assert one.old_logprobs != pytest.approx(one.ref_logprobs, abs=1e-3)


def test_a_resumed_learner_goes_on_exactly(tmp_path):
    whole = make_learner(lr=0.01)
    samples = whole.score(make_samples())
    whole.step(samples, policy_loss)
    whole.save(tmp_path)
    weights = {name: tensor.clone() for name, tensor in whole.weights().items()}
    whole.step(samples, policy_loss)
    resumed = make_learner(make_model(9), lr=0.01)
    resumed.model.load_state_dict(weights)
    resumed.load(tmp_path)
    resumed.step(samples, policy_loss)
    for one, other in zip(snapshot(whole), snapshot(resumed), strict=True):
        assert torch.equal(one, other)
    assert resumed.optimizer_step.num_steps == 2


@pytest.mark.parametrize("state", [[], {}, {"learner": 3}, {"learner": {"optimizer": {}}}, "another model's"])
def test_what_another_learner_left_is_refused_and_changes_nothing(state, tmp_path):
    learner = make_learner()
    samples = learner.score(make_samples())
    learner.step(samples, policy_loss)
    learner.save(tmp_path)
    if state == "another model's":
        state = load_tensors(tmp_path / "trainer.pt")
        state["learner"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3, 3)
    save_tensors(state, tmp_path / "trainer.pt")
    before = snapshot(learner)
    with pytest.raises(UserError, match=r"trainer\.pt: not the optimizer state of this run"):
        learner.load(tmp_path)
    for one, other in zip(before, snapshot(learner), strict=True):
        assert torch.equal(one, other)


def test_checkpointing_activations_changes_no_gradient():
    samples = make_scored(make_learner())
    plain = gradients(make_learner(), samples)
    lean = gradients(make_learner(gradient_checkpointing=True), samples)
    for one, other in zip(plain, lean, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_bfloat16_keeps_fp32_master_weights_and_stays_near():
    model = make_model(dtype=torch.float32)
    samples = make_samples()
    exact = make_learner(make_model(dtype=torch.float32)).score(samples)
    learner = make_learner(model, precision="bfloat16")
    rough = learner.score(samples)
    differences = [
        abs(a - b)
        for one, other in zip(exact, rough, strict=True)
        for a, b in zip(one.old_logprobs or (), other.old_logprobs or (), strict=True)
    ]
    assert 0 < sum(differences) / len(differences) < 0.05
    learner.step(rough, policy_loss)
    assert {parameter.dtype for parameter in learner.optimizer_step.parameters} == {torch.float32}
    assert all(state["exp_avg"].dtype == torch.float32 for state in learner.optimizer_step.optimizer.state.values())
