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

from vineppo.engine import ENGINES, engine_inputs
from vineppo.learner.config import LearnerConfig, OptimConfig
from vineppo.learner.losses import clipped_policy_loss, kl_to_reference
from vineppo.learner.policy import PolicyLearner
from vineppo.methods.dpo import Pair
from vineppo.models.make import make_symbol_tokenizer
from vineppo.types import Request, Sample, SamplingParams, UserError, make_sample

TEMPERATURE = 0.7
DPO = {"beta": 0.3, "positive_lambda": 5.0, "label_smoothing": 0.1}


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def make_learner(
    model: Any = None, reference: Any = None, lr: float = 1e-3, top_p: float = 1.0, top_k: int = 0, **options: Any
) -> PolicyLearner:
    optim = OptimConfig(lr=lr, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e9)
    config = LearnerConfig(**{"precision": "float32", "optim": optim, "kl_coef": 0.1, **options})
    model = model or make_model()
    sampling = SamplingParams(TEMPERATURE, top_p, top_k)
    return PolicyLearner(config, model, reference, sampling=sampling, total_steps=100)


def make_samples(n: int = 8) -> list[Sample]:
    draw = random.Random(5)
    samples = []
    for _ in range(n):
        prompt = tuple(draw.randrange(20) for _ in range(draw.randint(1, 6)))
        response = tuple(draw.randrange(20) for _ in range(draw.randint(1, 12)))
        advantages = tuple(draw.gauss(0, 1) for _ in response)
        samples.append(Sample(prompt, response, advantages, (0.0,) * len(response)))
    return samples


def gradients(learner: PolicyLearner, minibatch: list[Any], step: str = "step", **options: float) -> list[torch.Tensor]:
    """Those that the optimizer is handed."""
    found: list[torch.Tensor] = []
    learner.stepper.optimizer.step = lambda: found.extend(p.grad.clone() for p in learner.stepper.parameters)  # type: ignore[method-assign]
    getattr(learner, step)(minibatch, **options)
    return found


def expect_equal(ones: list[torch.Tensor], others: Any, within: float = 1e-10) -> None:
    for one, other in zip(ones, others, strict=True):
        assert (one - other).abs().max() < within
    assert max(one.abs().max().item() for one in ones) > 1e-3


def scored(learner: PolicyLearner) -> list[Sample]:
    """With old log-probs that differ from the current ones, so that ratios are not all 1 and some are clipped, and
    sampling log-probs that differ from those."""
    draw = random.Random(6)
    return [
        replace(
            sample,
            old_logprobs=tuple(x + draw.gauss(0, 0.3) for x in sample.old_logprobs or ()),
            sampling_logprobs=tuple(x + draw.gauss(0, 0.3) for x in sample.old_logprobs or ()),
        )
        for sample in learner.score(make_samples())
    ]


def make_pairs(learner: PolicyLearner) -> list[Pair]:
    samples = make_samples(12)
    chosen = learner.score(samples[:6])
    rejected = learner.score(
        [replace(r, prompt_ids=c.prompt_ids) for c, r in zip(samples[:6], samples[6:], strict=True)]
    )
    return [Pair(*pair) for pair in zip(chosen, rejected, strict=True)]


AGGREGATIONS: list[dict[str, Any]] = [
    {},
    {"loss_aggregation": "sequence"},
    {"loss_aggregation": "constant", "loss_length": 9},
]


@pytest.mark.parametrize("options", [*AGGREGATIONS, {"entropy_coef": 0.3, "max_importance": 1.1}], ids=str)
@pytest.mark.parametrize("step", ["step", "step_nll"])
def test_gradients_do_not_depend_on_microbatches_or_order(step, options):
    reference = make_model(1)
    samples = scored(make_learner(reference=reference))
    whole = gradients(make_learner(reference=reference, **options), samples, step)
    shuffled = random.Random(1).sample(samples, len(samples))
    for tokens, minibatch in ((1, samples), (30, samples), (10**6, shuffled), (40, shuffled)):
        learner = make_learner(reference=reference, microbatch_tokens=tokens, **options)
        expect_equal(whole, gradients(learner, minibatch, step))


def test_gradients_of_pairs_do_not_depend_on_microbatches_or_order():
    reference = make_model(1)
    pairs = make_pairs(make_learner(reference=reference))
    whole = gradients(make_learner(reference=reference), pairs, "step_dpo", **DPO)
    for tokens, minibatch in ((1, pairs), (50, pairs), (10**6, pairs[::-1]), (80, pairs[::-1])):
        learner = make_learner(reference=reference, microbatch_tokens=tokens)
        expect_equal(whole, gradients(learner, minibatch, "step_dpo", **DPO))


# Second way: the whole [T, V] softmax of each rollout alone, sums as in the docstrings


def log_softmax(model: Any, sample: Sample) -> torch.Tensor:  # [L, V]
    ids = torch.tensor([sample.prompt_ids + sample.response_ids])
    return (model(ids).logits[0, -1 - len(sample.response_ids) : -1] / TEMPERATURE).log_softmax(-1)


def of_targets(rows_LV: torch.Tensor, sample: Sample) -> torch.Tensor:  # [L]
    return rows_LV.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0]


def column(numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def written_loss(model: Any, reference: Any, samples: list[Sample], config: LearnerConfig) -> torch.Tensor:
    num_tokens = sum(len(sample.response_ids) for sample in samples)
    policy = kl = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        rows_LV = log_softmax(model, sample)
        new, old = of_targets(rows_LV, sample), column(sample.old_logprobs)
        losses, _, _ = clipped_policy_loss(
            new, old, column(sample.advantages), clip_eps_low=config.clip_eps_low, clip_eps_high=config.clip_eps_high
        )
        if config.max_importance is not None:
            importance = [math.exp(o - s) for o, s in zip(old, sample.sampling_logprobs, strict=True)]
            losses = losses * column([min(weight, config.max_importance) for weight in importance])
        losses = losses - config.entropy_coef * -(rows_LV.exp() * rows_LV).sum(-1)
        if config.loss_aggregation == "sequence":
            policy = policy + losses.mean() / len(samples)
        elif config.loss_aggregation == "constant":
            assert config.loss_length is not None
            policy = policy + losses.sum() / config.loss_length / len(samples)
        else:
            policy = policy + losses.sum() / num_tokens
        ref = of_targets(log_softmax(reference, sample), sample).detach()
        estimates = kl_to_reference(new, ref, estimator=config.kl_estimator, clamp=config.kl_clamp)
        kl = kl + (estimates * (new - old).exp() if config.kl_ratio_correction else estimates).sum()
    return policy + config.kl_coef * kl / len(samples)


@pytest.mark.parametrize(
    "options",
    [
        *AGGREGATIONS,
        {"entropy_coef": 0.3},
        {"entropy_coef": 0.3, "loss_aggregation": "sequence"},
        {"max_importance": 1.1},
        {"max_importance": 0.9, "loss_aggregation": "constant", "loss_length": 5},
        {"clip_eps_low": 0.1, "clip_eps_high": 0.4, "kl_estimator": "k1"},
        {"kl_estimator": "k2", "kl_clamp": 0.05},
        {"kl_ratio_correction": True},
        {"kl_ratio_correction": True, "kl_estimator": "k1"},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_the_loss_as_written_down(options):
    reference, model = make_model(1), make_model()
    samples = scored(make_learner(model, reference))
    learner = make_learner(reference=reference, **options)
    loss = written_loss(model, reference, samples, learner.config)
    expect_equal(gradients(learner, samples), torch.autograd.grad(loss, list(model.parameters())))
    assert learner.step(samples)["policy/loss"] == pytest.approx(loss.item(), abs=1e-12)


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
    expect_equal(gradients(learner, samples, "step_nll"), torch.autograd.grad(loss, list(model.parameters())))
    assert learner.step_nll(samples)["sft/nll"] == pytest.approx(loss.item(), abs=1e-12)


def test_the_loss_of_pairs_is_the_one_written_down():
    reference, model = make_model(1), make_model()
    pairs = make_pairs(make_learner(model, reference))
    losses, margins, gains, lost = [], [], [], 0
    for pair in pairs:
        c, r = (of_targets(log_softmax(model, sample), sample).sum() for sample in (pair.chosen, pair.rejected))
        ref_c, ref_r = (of_targets(log_softmax(reference, s), s).sum().detach() for s in (pair.chosen, pair.rejected))
        margin = 0.3 * ((c - ref_c) - (r - ref_r))
        z = margin - 0.3 * 5.0 * torch.relu(ref_c - c)
        losses.append(0.9 * torch.log(1 + torch.exp(-z)) + 0.1 * torch.log(1 + torch.exp(z)))
        margins.append(margin.item())
        gains.append((c - ref_c).item())
        lost += int(c < ref_c)
    assert 0 < lost < len(pairs)  # both branches of the penalty
    learner = make_learner(reference=reference)
    loss = torch.stack(losses).mean()
    expect_equal(gradients(learner, pairs, "step_dpo", **DPO), torch.autograd.grad(loss, list(model.parameters())))
    metrics = learner.step_dpo(pairs, **DPO)
    assert metrics["dpo/loss"] == pytest.approx(loss.item())
    assert metrics["dpo/margin"] == pytest.approx(sum(margins) / len(pairs))
    assert metrics["dpo/ordered_frac"] == pytest.approx(sum(margin > 0 for margin in margins) / len(pairs))
    assert metrics["dpo/chosen_gain"] == pytest.approx(sum(gains) / len(pairs))


def test_steps_on_pairs_tell_them_apart():
    reference = make_model()
    learner = make_learner(reference=reference, lr=3e-3)
    pairs = make_pairs(learner)
    steps = [learner.step_dpo(pairs, **DPO) for _ in range(30)]
    assert steps[0]["dpo/margin"] == pytest.approx(0, abs=1e-9)
    assert steps[-1]["dpo/loss"] < steps[0]["dpo/loss"]
    assert steps[-1]["dpo/ordered_frac"] == 1


def test_metrics_of_a_step_are_means_over_its_tokens():
    reference, model = make_model(1), make_model()
    samples = scored(make_learner(model, reference))
    rows = [log_softmax(model, sample).detach() for sample in samples]
    new = torch.cat([of_targets(of_one, sample) for of_one, sample in zip(rows, samples, strict=True)])
    old, sampling = (
        column([x for s in samples for x in getattr(s, name)]) for name in ("old_logprobs", "sampling_logprobs")
    )
    ref = torch.cat([of_targets(log_softmax(reference, sample), sample).detach() for sample in samples])
    learner = make_learner(
        reference=reference, entropy_coef=0.1, max_importance=1.1, kl_clamp=1e9, microbatch_tokens=40
    )
    metrics = learner.step(samples)
    assert metrics["policy/ratio_mean"] == pytest.approx((new - old).exp().mean().item())
    assert metrics["policy/ratio_max"] == pytest.approx((new - old).exp().max().item())
    assert metrics["policy/nll"] == pytest.approx(-new.mean().item())
    assert metrics["policy/entropy"] == pytest.approx(torch.cat([-(r.exp() * r).sum(-1) for r in rows]).mean().item())
    assert metrics["policy/importance_max"] == pytest.approx((old - sampling).exp().max().item())
    assert metrics["kl/reference"] == pytest.approx(((ref - new).exp() - (ref - new) - 1).sum().item() / len(samples))


# top_p and top_k


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
        assert sample.kept_logmass == whole.kept_logmass
        assert sample.kept_logmass == pytest.approx(naive_logmasses(model, sample, top_p, top_k).tolist(), abs=1e-12)


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
    assert all(set(sample.kept_logmass or ()) == {0.0} for sample in samples)


@pytest.mark.parametrize("renormalize", [False, True])
def test_importance_is_policy_over_engine_whether_renormalised_or_not(renormalize):
    """The engine's log-probs are of the full softmax: where it agrees with the training forward, the weight is 1."""
    learner = make_learner(top_p=0.6, renormalize_nucleus=renormalize, max_importance=10.0)
    full = make_learner().score(make_samples())
    agreeing = [replace(sample, sampling_logprobs=sample.old_logprobs) for sample in full]
    samples = learner.score(agreeing)
    assert learner.step(samples)["policy/importance_max"] == pytest.approx(1, abs=1e-9)
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


@pytest.mark.parametrize(
    "wild", [{"ref_logprobs": 150.0}, {"ref_logprobs": -1e4}, {"sampling_logprobs": -1e4}, {"sampling_logprobs": 0.0}]
)
@pytest.mark.parametrize("options", [{}, {"kl_ratio_correction": True}])
def test_one_wild_token_does_not_cost_the_step(wild, options):
    """Of a reference or an engine that is far away. A policy that is far from its own old self is the veto's."""
    learner = make_learner(make_model(dtype=torch.float32), make_model(1, torch.float32), max_importance=2.0, **options)
    first, *rest = learner.score(make_samples())
    ((name, number),) = wild.items()
    before = snapshot(learner)
    metrics = learner.step([replace(first, **{name: (number, *getattr(first, name)[1:])}), *rest])
    assert metrics["optim/num_skipped_steps"] == 0
    assert all(math.isfinite(number) for number in metrics.values())
    assert any(not torch.equal(one, other) for one, other in zip(before, snapshot(learner), strict=True))


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
