"""The learner's laws on a real tiny model: gradients do not depend on how the work is cut, and steps are whole."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vineppo.learner import LearnerConfig, PolicyLearner
from vineppo.losses import clipped_policy_loss, kl_to_reference
from vineppo.optim import OptimConfig
from vineppo.types import Sample, SamplingParams, UserError

TEMPERATURE = 0.7


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def make_learner(model: Any = None, reference: Any = None, lr: float = 1e-3, **options: Any) -> PolicyLearner:
    optim = OptimConfig(lr=lr, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e9)
    config = LearnerConfig(**{"precision": "float32", "optim": optim, "kl_coef": 0.1, **options})
    model = model or make_model()
    return PolicyLearner(config, model, reference, sampling=SamplingParams(TEMPERATURE), total_steps=100)


def make_samples(n: int = 8) -> list[Sample]:
    draw = random.Random(5)
    samples = []
    for _ in range(n):
        prompt = tuple(draw.randrange(20) for _ in range(draw.randint(1, 6)))
        response = tuple(draw.randrange(20) for _ in range(draw.randint(1, 12)))
        advantages = tuple(draw.gauss(0, 1) for _ in response)
        samples.append(Sample(prompt, response, advantages, (0.0,) * len(response)))
    return samples


def gradients(learner: PolicyLearner, minibatch: list[Sample], step: str = "step") -> list[torch.Tensor]:
    """Those that the optimizer is handed."""
    found: list[torch.Tensor] = []
    learner.stepper.optimizer.step = lambda: found.extend(p.grad.clone() for p in learner.stepper.parameters)  # type: ignore[method-assign]
    getattr(learner, step)(minibatch)
    return found


def scored(learner: PolicyLearner) -> list[Sample]:
    """With old log-probs that differ from the current ones, so that ratios are not all 1 and some are clipped."""
    draw = random.Random(6)
    samples = learner.score(make_samples())
    return [
        replace(sample, old_logprobs=tuple(x + draw.gauss(0, 0.3) for x in sample.old_logprobs or ()))
        for sample in samples
    ]


@pytest.mark.parametrize("step", ["step", "step_nll"])
def test_gradients_do_not_depend_on_microbatches_or_order(step):
    reference = make_model(1)
    samples = scored(make_learner(reference=reference))
    whole = gradients(make_learner(reference=reference), samples, step)
    shuffled = random.Random(1).sample(samples, len(samples))
    for tokens, minibatch in ((1, samples), (30, samples), (10**6, shuffled), (40, shuffled)):
        learner = make_learner(reference=reference, microbatch_tokens=tokens)
        for one, other in zip(whole, gradients(learner, minibatch, step), strict=True):
            assert (one - other).abs().max() < 1e-10
    assert max(gradient.abs().max().item() for gradient in whole) > 1e-3


def test_the_gradient_is_that_of_the_loss_as_written_down():
    """Second way: the whole [T, V] softmax of each rollout alone, sums as in the docstring of step."""
    reference = make_model(1)
    model = make_model()
    samples = scored(make_learner(model, reference))
    num_tokens = sum(len(sample.response_ids) for sample in samples)
    surrogate = kl = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids + sample.response_ids])
        targets = ids[0, len(sample.prompt_ids) :, None]

        def logprobs(of: Any, ids: torch.Tensor = ids, targets: torch.Tensor = targets) -> torch.Tensor:
            logits = of(ids).logits[0, -1 - len(targets) : -1] / TEMPERATURE
            return logits.log_softmax(-1).gather(1, targets)[:, 0]

        new = logprobs(model)
        old = torch.tensor(sample.old_logprobs, dtype=torch.float64)
        advantages = torch.tensor(sample.advantages, dtype=torch.float64)
        surrogate = surrogate + clipped_policy_loss(new, old, advantages, clip_eps_low=0.2, clip_eps_high=0.2)[0].sum()
        kl = kl + kl_to_reference(new, logprobs(reference).detach(), estimator="k3", clamp=10.0).sum()
    expected = torch.autograd.grad(surrogate / num_tokens + 0.1 * kl / len(samples), list(model.parameters()))
    for one, other in zip(gradients(make_learner(reference=reference), samples), expected, strict=True):
        assert (one - other).abs().max() < 1e-10


def test_scores_are_the_forward_s_log_probs_and_do_not_depend_on_company():
    learner = make_learner(reference=make_model(1))
    together = learner.score(make_samples())
    alone = [learner.score([sample])[0] for sample in make_samples()]
    for one, other in zip(together, alone, strict=True):
        assert one.old_logprobs == pytest.approx(other.old_logprobs, abs=1e-12)
        assert one.ref_logprobs == pytest.approx(other.ref_logprobs, abs=1e-12)
        assert one.old_logprobs != pytest.approx(one.ref_logprobs, abs=1e-3)


def test_the_first_ratio_of_an_iteration_is_1():
    learner = make_learner(reference=make_model(1))
    metrics = learner.step(learner.score(make_samples()))
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-9)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-9)
    assert metrics["policy/clip_frac"] == 0
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-9)


def test_a_step_raises_what_had_a_good_advantage_and_lowers_what_had_a_bad_one():
    learner = make_learner(lr=1e-3)
    good, bad = (
        replace(s, advantages=(a,) * len(s.response_ids)) for s, a in zip(make_samples(2), (1, -1), strict=True)
    )
    before = learner.score([good, bad])
    learner.step(before)
    after = learner.score([good, bad])
    changes = [sum(b.old_logprobs) - sum(a.old_logprobs) for a, b in zip(before, after, strict=True)]  # type: ignore[arg-type]
    assert changes[0] > 0 > changes[1]


def snapshot(learner: PolicyLearner) -> list[torch.Tensor]:
    tensors = [parameter.detach().clone() for parameter in learner.stepper.parameters]
    for state in learner.stepper.optimizer.state_dict()["state"].values():
        tensors += [torch.as_tensor(value).clone() for value in state.values()]
    return tensors


@pytest.mark.parametrize("what", ["advantage", "ratio", "weights"])
def test_a_bad_minibatch_changes_nothing_and_is_counted(what):
    learner = make_learner()
    samples = learner.score(make_samples())
    learner.step(samples)
    before = snapshot(learner)
    bad = list(samples)
    if what == "advantage":
        bad[3] = replace(bad[3], advantages=(math.nan,) * len(bad[3].response_ids))
    elif what == "ratio":
        bad = [replace(s, old_logprobs=tuple(x - 5 for x in s.old_logprobs or ())) for s in bad]
    else:
        # The loss is finite, but the root's derivative at 0 is not.
        learner.model.base_model.register_forward_hook(add_zero_root)
    assert learner.step(bad)["optim/num_skipped_steps"] == 1
    for one, other in zip(before, snapshot(learner), strict=True):
        assert torch.equal(one, other)
    assert learner.stepper.num_steps == 1


def add_zero_root(module: Any, args: Any, output: Any) -> Any:
    return type(output)(last_hidden_state=output.last_hidden_state + torch.sqrt(next(module.parameters()).sum() * 0))


def test_too_many_bad_minibatches_in_a_row_stop_the_run():
    learner = make_learner(max_skipped_steps=3)
    good = learner.score(make_samples())
    bad = [replace(s, advantages=(math.inf,) * len(s.response_ids)) for s in good]
    for minibatch in (bad, bad, good, bad, bad):
        learner.step(minibatch)
    with pytest.raises(UserError, match=r"3 optimizer steps in a row were skipped.*not finite"):
        learner.step(bad)


def test_a_resumed_learner_goes_on_exactly():
    whole = make_learner(lr=0.01)
    samples = whole.score(make_samples())
    whole.step(samples)
    state, weights = whole.trainer_state(), {k: v.clone() for k, v in whole.state_dict().items()}
    state = torch.load(_saved(state), weights_only=True)
    whole.step(samples)
    resumed = make_learner(make_model(9), lr=0.01)
    resumed.model.load_state_dict(weights)
    resumed.load_trainer_state(state)
    resumed.step(samples)
    for one, other in zip(snapshot(whole), snapshot(resumed), strict=True):
        assert torch.equal(one, other)
    assert resumed.stepper.num_steps == 2


def _saved(state: dict[str, Any]) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_checkpointing_activations_changes_no_gradient():
    samples = scored(make_learner())
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
    learner.step(rough)
    assert {parameter.dtype for parameter in learner.stepper.parameters} == {torch.float32}
    assert all(state["exp_avg"].dtype == torch.float32 for state in learner.stepper.optimizer.state.values())


def test_maximum_likelihood_learns_what_it_is_shown():
    learner = make_learner(lr=0.01)
    losses = [learner.step_nll(make_samples())["sft/nll"] for _ in range(30)]
    assert losses[-1] < losses[0] / 2
