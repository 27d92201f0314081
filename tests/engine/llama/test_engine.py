"""Prefix sharing, memory and scheduling of the torch engine."""

import copy
import random

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from vineppo.engine import engine_inputs
from vineppo.engine.llama.engine import TorchEngine
from vineppo.engine.llama.kernels.native import why_not_native
from vineppo.types import Request, SamplingParams, UserError

HOT = SamplingParams(temperature=1.0)


def vines_of(rollout_request, completion, num_vines=3, every=4):
    states = [
        rollout_request.prefix_ids + completion.token_ids[:cut] for cut in range(0, len(completion.token_ids), every)
    ]
    return [Request(state, 10, 1000 * j + k) for j, state in enumerate(states) for k in range(num_vines)]


def test_prompts_of_a_group_are_computed_once_and_vines_not_at_all(make_engine):
    engine = make_engine()
    prompts = [(p, *range(p, p + 9 + p)) for p in range(5)]
    rollouts = [Request(prompt, 20, 10 * p + g) for p, prompt in enumerate(prompts) for g in range(4)]
    completions = engine.generate(rollouts, HOT, purpose="policy", keep=True)
    assert engine.prefill_tokens == sum(map(len, prompts))

    vines = [v for r, c in zip(rollouts, completions, strict=True) for v in vines_of(r, c)]
    before = engine.prefill_tokens
    shared = engine.generate(vines, HOT, purpose="vine", keep=False)
    assert engine.prefill_tokens == before
    assert engine.prefill_tokens + engine.reused_tokens == sum(len(r.prefix_ids) for r in rollouts + vines)
    assert engine.usage == {
        "policy": sum(len(c.token_ids) for c in completions),
        "vine": sum(len(c.token_ids) for c in shared),
    }

    fresh = make_engine()  # forking the cache changes nothing that is drawn
    assert [c.token_ids for c in fresh.generate(vines, HOT, purpose="vine", keep=False)] == [
        c.token_ids for c in shared
    ]
    # Without rollouts to fork, the longest state of each rollout is computed, and the others are prefixes of it.
    longest = {r.prefix_ids + c.token_ids[:16] for r, c in zip(rollouts, completions, strict=True)}
    assert fresh.prefill_tokens == sum(map(len, longest))


@pytest.mark.parametrize("keep", [True, False])
def test_the_caller_decides_what_is_kept_whatever_the_purpose(keep, make_engine):
    engine = make_engine()
    rollout = Request((1, 2, 3), 12, 0)
    (completion,) = engine.generate([rollout], HOT, purpose="anything", keep=keep)
    before = engine.prefill_tokens
    engine.generate([Request((1, 2, 3, *completion.token_ids[:6]), 5, 1)], HOT, purpose="else", keep=keep)
    assert engine.prefill_tokens - before == (0 if keep else 9)


@pytest.mark.parametrize("name", ["torch", "native"])
def test_what_is_drawn_alike_is_computed_once(name, make_engine):
    """Through policy samples, walks along the rollouts, forks and any number of slots."""
    prompts = [(1, p % 3, *range(5, 9 + p)) for p in range(6)]
    rollouts = [Request(prompt, 30, 10 * p + g) for p, prompt in enumerate(prompts) for g in range(4)]
    for temperature in (0.02, 0.1, 1.0):
        params, drawn = SamplingParams(temperature), []
        for max_batch in (2, 5, 300):
            engine = make_engine(name, max_batch=max_batch)
            completions = engine.generate(rollouts, params, purpose="policy", keep=True)
            vines = [v for r, c in zip(rollouts, completions, strict=True) for v in vines_of(r, c, num_vines=5)]
            of_policy = engine.decoded_tokens
            of_vines = engine.generate(vines, params, purpose="vine", keep=False)
            assert of_policy == len(drawn_after(rollouts, completions))
            assert engine.decoded_tokens - of_policy == len(drawn_after(vines, of_vines))
            drawn.append([c.token_ids for c in completions + of_vines])
        assert drawn[0] == drawn[1] == drawn[2]
        alone = [make_engine(name).generate([vine], params, purpose="vine", keep=False)[0] for vine in vines[::97]]
        assert [c.token_ids for c in alone] == [c.token_ids for c in of_vines[::97]]
        for one, other in zip(alone, of_vines[::97], strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def drawn_after(requests, completions):
    return {
        request.prefix_ids + completion.token_ids[:n]
        for request, completion in zip(requests, completions, strict=True)
        for n in range(len(completion.token_ids))
    }


def test_new_weights_forget_what_was_cached(make_model, make_engine):
    engine = make_engine()
    rollout = Request((1, 2, 3, 4), 12, 0)
    completion = engine.generate([rollout], HOT, purpose="policy", keep=True)[0]
    engine.load_weights(make_model("llama-gqa-tied", seed=4).state_dict(), version=1)
    before = engine.prefill_tokens
    engine.generate([Request(rollout.prefix_ids + completion.token_ids[:6], 5, 1)], HOT, purpose="vine", keep=False)
    assert engine.prefill_tokens == before + 10


@pytest.mark.parametrize(
    ("cut", "tail", "computed"),
    [(12, (), 1), (11, (), 0), (5, (), 0), (5, (60, 61, 62), 3), (12, (7, 7), 3), (0, (63,), 1)],
    ids=["whole", "whole-but-last", "inside", "diverging", "extending", "prompt-and-other"],
)
def test_a_prefix_reuses_what_it_shares_with_a_finished_sequence(cut, tail, computed, make_model, make_engine):
    model = make_model("qwen2")
    engine = make_engine("torch", model)
    completion = engine.generate([Request((1, 2, 3), 12, 0)], SamplingParams(0), purpose="policy", keep=True)[0]
    assert 60 not in completion.token_ids
    assert 63 not in completion.token_ids
    before = engine.prefill_tokens
    request = Request((1, 2, 3, *completion.token_ids[:cut], *tail), 8, 5)
    forked = engine.generate([request], HOT, purpose="vine", keep=False)[0]
    assert engine.prefill_tokens - before == computed
    fresh = make_engine("torch", model).generate([request], HOT, purpose="vine", keep=False)[0]
    assert forked.token_ids == fresh.token_ids
    assert forked.logprobs == pytest.approx(fresh.logprobs, abs=1e-4)


@pytest.mark.parametrize("max_kv_tokens", [52, 70, 150, 1000])
def test_little_memory_queues_requests_and_changes_nothing(max_kv_tokens, make_engine, make_requests):
    requests = make_requests(150, seed=7)
    roomy = make_engine().generate(requests, HOT, purpose="policy", keep=True)
    engine = make_engine(max_kv_tokens=max_kv_tokens)
    for purpose in ("policy", "vine"):
        assert [c.token_ids for c in engine.generate(requests, HOT, purpose=purpose, keep=purpose == "policy")] == [
            c.token_ids for c in roomy
        ]
        assert engine.memory.held_tokens <= max_kv_tokens


def test_slots_are_freed_before_others_are_laid_out(make_engine, monkeypatch):
    engine = make_engine(max_kv_tokens=70)
    memory, lay_out, moved = engine.memory, engine.memory.lay_out, []

    def slots(*sizes):
        before = StorageWeakRef(memory._flat.untyped_storage())
        laid_out = lay_out(*sizes)
        if before.cdata != memory._flat.untyped_storage()._cdata:
            moved.append(before.expired())
        return laid_out

    monkeypatch.setattr(memory, "lay_out", slots)
    # Two that do not fit beside each other, in turn.
    requests = [Request((p,) * length, budget, p) for p in range(3) for length, budget in ((60, 8), (5, 60))]
    engine.generate(requests, HOT, purpose="vine", keep=False)
    assert len(moved) > 2
    assert all(moved)


def test_a_request_larger_than_the_memory_is_the_users_error(make_engine):
    engine = make_engine(max_kv_tokens=30)
    assert len(engine.generate([Request((1,) * 20, 11, 0)], HOT, purpose="policy", keep=True)[0].token_ids) == 11
    with pytest.raises(UserError, match="max_kv_tokens = 30"):
        engine.generate([Request((1,) * 20, 12, 0)], HOT, purpose="policy", keep=True)


def test_long_prefixes_beside_long_budgets_take_turns(make_engine):
    engine = make_engine(max_kv_tokens=100)  # each fits, but not slots for the longest of both
    requests = [Request((1,) * 90, 10, 0), Request((2,), 90, 1), Request((1,) * 3, 80, 2), Request((1,) * 91, 2, 3)]
    completions = engine.generate(requests, HOT, purpose="policy", keep=True)
    assert [len(c.token_ids) for c in completions] == [10, 90, 80, 2]
    roomy = make_engine().generate(requests, HOT, purpose="policy", keep=True)
    assert [c.token_ids for c in completions] == [c.token_ids for c in roomy]


def test_two_thousand_requests(make_engine, make_requests):
    engine = make_engine(max_batch=128)
    requests = make_requests(2000, seed=11, max_new=6)
    completions = engine.generate(requests, HOT, purpose="policy", keep=True)
    assert [len(c.token_ids) for c in completions] == [r.max_new_tokens for r in requests]
    alone = [engine.generate([r], HOT, purpose="vine", keep=False)[0].token_ids for r in requests[::400]]
    assert alone == [c.token_ids for c in completions[::400]]


def test_one_trunk_far_heavier_than_the_others(make_engine):
    requests = [Request((1, 2, 3, 4), 8, seed) for seed in range(60)]
    requests += [Request((p, p), 8, p) for p in range(5, 25)]
    engine = make_engine()
    completions = engine.generate(requests, HOT, purpose="vine", keep=False)
    alone = [engine.generate([r], HOT, purpose="vine", keep=False)[0].token_ids for r in requests[::9]]
    assert alone == [c.token_ids for c in completions[::9]]


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_bfloat16_is_as_near_to_float32_as_transformers_own(kernels, make_model, tokenizer):
    """The mean error of log-probs against the float32 forward, on what was drawn."""
    if kernels == "native" and (reason := why_not_native(torch.bfloat16, torch.device("cpu"))):
        pytest.skip(reason)
    model = make_model("llama3-rope")
    engine = TorchEngine(TorchEngine.Config(dtype="bfloat16", kernels=kernels), *engine_inputs(model, tokenizer))
    requests = [Request((1, 2, 3, s), 16, s) for s in range(40)]
    completions = engine.generate(requests, HOT, purpose="policy", keep=True)
    exact, half = [], []
    for logprobs, forward in ((exact, model), (half, copy.deepcopy(model).bfloat16())):
        for request, completion in zip(requests, completions, strict=True):
            ids = torch.tensor([[*request.prefix_ids, *completion.token_ids]])
            with torch.no_grad():
                logprobs_TV = forward(ids).logits[0, 3:-1].float().log_softmax(-1)
            logprobs.append(logprobs_TV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0])
    expected = torch.cat(exact)
    ours = torch.cat([torch.tensor(completion.logprobs) for completion in completions])
    error, theirs = ((found - expected).abs().mean() for found in (ours, torch.cat(half)))
    assert 0.001 < error < 1.2 * theirs


@pytest.mark.parametrize("max_batch", [16, 100])
def test_keys_and_values_of_vines_stay_within_what_the_documentation_says(max_batch, make_engine):
    """Rows are as long as the largest budget, trunks as the longest prefix; asked as each vine ends."""
    rng = random.Random(0)
    trajectories = [tuple(rng.choices(range(64), k=60)) for _ in range(6)]
    vines = [Request(t[: 10 + cut], 50 - cut, 100 * i + cut + k) for i, t in enumerate(trajectories)
             for cut in range(0, 50, 10) for k in range(9)]  # fmt: skip
    engine, held = make_engine(max_batch=max_batch, max_kv_tokens=20_000), []
    engine.generate(
        vines, HOT, purpose="vine", keep=False, on_complete=lambda *_: held.append(engine.memory.held_bytes)
    )
    tokens = max_batch * 49 + len(trajectories) * 50
    assert 0 < max(held) <= tokens * 2 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, head size, float32
