"""What every engine must satisfy: order, seeds, log-probabilities, endings, errors."""

import copy
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    RwkvConfig,
    RwkvForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vineppo.engine.stopping import StopRule
from vineppo.models.make import make_symbol_tokenizer
from vineppo.types import Request, SamplingParams, UserError

FAMILY_NAMES = [
    "llama",
    "llama-gqa-tied",
    "llama-biases",
    "llama3-rope",
    "llama-linear-rope",
    "mistral-head-dim",
    "qwen2",
    "qwen3-tied",
    "qwen3-biases",
]
OTHER_NAMES = ["gpt2", "gpt-neox"]
GREEDY = SamplingParams(temperature=0)
HOT = SamplingParams(temperature=1.0)
EVERY = pytest.mark.parametrize("name", ["torch", "native", "hf"])


def greedy_tokens(model, prefix, num_tokens):
    out = model.generate(torch.tensor([prefix]), do_sample=False, max_new_tokens=num_tokens, pad_token_id=0)
    return tuple(out[0, len(prefix) :].tolist())


@torch.no_grad()
def model_logprobs(model, request, completion, temperature=1.0):
    ids = torch.tensor([[*request.prefix_ids, *completion.token_ids]])
    logits = model(ids).logits[0, len(request.prefix_ids) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def check_logprobs(model, requests, completions, temperature=1.0):
    for request, completion in zip(requests, completions, strict=True):
        expected = model_logprobs(model, request, completion, temperature)
        assert (torch.tensor(completion.logprobs) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, family) for name in ("torch", "native") for family in FAMILY_NAMES]
    + [("hf", family) for family in ["llama", *OTHER_NAMES]],
)
def test_greedy_tokens_equal_transformers(name, family, make_model, make_engine, make_requests):
    model = make_model(family)
    engine = make_engine(name, model, max_batch=7)
    requests = make_requests(12, seed=3)
    completions = engine.generate(requests, GREEDY, purpose="policy", keep=True)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids == greedy_tokens(model, request.prefix_ids, request.max_new_tokens)
        assert completion.finish_reason == "length"
    check_logprobs(model, requests, completions)


@EVERY
@pytest.mark.parametrize("params", [SamplingParams(0.6), SamplingParams(1.3, top_p=0.9), SamplingParams(0.8, top_k=5)])
def test_logprobs_are_those_of_the_tempered_softmax(name, params, make_model, make_engine, make_requests):
    model = make_model("llama-gqa-tied")
    requests = make_requests(20, seed=1)
    completions = make_engine(name, model).generate(requests, params, purpose="policy", keep=True)
    check_logprobs(model, requests, completions, params.temperature)


@EVERY
def test_a_seed_alone_decides_a_completion(name, make_engine, make_requests):
    engine = make_engine(name, max_batch=64)
    requests = make_requests(100 if name == "hf" else 400)
    together = engine.generate(requests, HOT, purpose="vine", keep=False)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    shuffled = engine.generate([requests[i] for i in order], HOT, purpose="vine", keep=False)
    assert [shuffled[order.index(i)].token_ids for i in range(len(requests))] == [c.token_ids for c in together]
    for i in range(0, len(requests), 20):
        alone = engine.generate([requests[i]], HOT, purpose="vine", keep=False)[0]
        assert alone.token_ids == together[i].token_ids
        assert alone.logprobs == pytest.approx(together[i].logprobs, abs=1e-4)
    assert engine.usage["vine"] >= sum(2 * len(c.token_ids) for c in together)


@torch.no_grad()
def sampled_distributions(model, request, completion, params):  # [L, V]
    """What a plain forward and transformers' warpers say of every token drawn."""
    ids: Any = torch.tensor([[*request.prefix_ids, *completion.token_ids]])
    logits_LV = model(ids).logits[0, len(request.prefix_ids) - 1 : -1].float()
    if params.temperature == 0:
        return torch.nn.functional.one_hot(logits_LV.argmax(-1), logits_LV.shape[1]).double()
    logits_LV = TemperatureLogitsWarper(float(params.temperature))(ids, logits_LV)
    if params.top_k:
        logits_LV = TopKLogitsWarper(params.top_k)(ids, logits_LV)
    if params.top_p < 1:
        logits_LV = TopPLogitsWarper(params.top_p)(ids, logits_LV)
    return logits_LV.softmax(-1).double()


CUT = SamplingParams(0.9, top_p=0.8, top_k=20)


@EVERY
@pytest.mark.parametrize("num_alternatives", [1, 4, 64])
@pytest.mark.parametrize(
    "params", [GREEDY, HOT, SamplingParams(0.6, top_p=0.7), SamplingParams(1.3, top_k=5), CUT], ids=str
)
def test_alternatives_are_the_likeliest_tokens_under_what_is_sampled_from(
    name, params, num_alternatives, make_model, make_engine, make_requests
):
    model, requests = make_model("llama-gqa-tied"), make_requests(16, seed=7)
    engine = make_engine(name, model)
    asked = engine.generate(requests, replace(params, num_alternatives=num_alternatives), purpose="vine", keep=False)
    draws = make_engine(name, model).generate(requests, params, purpose="vine", keep=False)
    assert [replace(completion, alternatives=None) for completion in asked] == draws, "asking must change no draw"
    for request, completion in zip(requests, asked, strict=True):
        expected_LV = sampled_distributions(model, request, completion, params)
        for token, alternatives, expected_V in zip(
            completion.token_ids, completion.alternatives, expected_LV, strict=True
        ):
            ids, logprobs = map(list, zip(*alternatives, strict=True))
            probs = torch.tensor(logprobs).double().exp()
            likeliest = expected_V.sort(descending=True).values[: len(ids)]
            assert len(ids) == min(num_alternatives, int((expected_V > 0).sum()))
            assert (expected_V[ids] - probs).abs().max() < 1e-4
            assert (likeliest - probs).abs().max() < 1e-4
            if num_alternatives >= (expected_V > 0).sum():
                assert probs.sum() == pytest.approx(1, abs=1e-5)
                assert token in ids
            else:
                assert probs.sum() < 1


@EVERY
def test_a_vine_s_alternatives_are_those_of_the_rollout_at_its_state(name, make_engine):
    engine, params = make_engine(name), replace(CUT, num_alternatives=5)
    (rollout,) = engine.generate([Request((1, 2, 3), 20, 0)], params, purpose="policy", keep=True)
    vines = [Request((1, 2, 3, *rollout.token_ids[:n]), 20 - n, seed) for n in range(20) for seed in (n, 100 + n)]
    for request, vine in zip(vines, engine.generate(vines, params, purpose="vine", keep=False), strict=True):
        start = len(request.prefix_ids) - 3
        shared = next((i for i, t in enumerate(vine.token_ids) if rollout.token_ids[start + i] != t), 20 - start - 1)
        for of_rollout, of_vine in zip(rollout.alternatives[start:], vine.alternatives[: shared + 1], strict=False):
            assert [token for token, _ in of_rollout] == [token for token, _ in of_vine]
            assert [x for _, x in of_rollout] == pytest.approx([x for _, x in of_vine], abs=1e-4)


@pytest.mark.parametrize("other", ["native", "hf"])
def test_all_engines_draw_the_same(other, make_model, make_engine, make_requests):
    model, requests = make_model("qwen3-tied"), make_requests(30, seed=5)
    for params in (HOT, SamplingParams(0.7, top_p=0.8, top_k=20)):
        left, right = (
            make_engine(name, model).generate(requests, params, purpose="eval", keep=False) for name in ("torch", other)
        )
        assert [c.token_ids for c in left] == [c.token_ids for c in right]


@EVERY
def test_different_seeds_differ_and_equal_ones_agree(name, make_engine):
    requests = [Request((1, 2, 3), 12, seed) for seed in (1, 2, 2**63 - 1, 1)]
    completions = make_engine(name).generate(requests, HOT, purpose="policy", keep=True)
    assert completions[0].token_ids == completions[3].token_ids
    assert len({c.token_ids for c in completions}) == 3


@EVERY
def test_eos_ends_a_completion_and_stays_in_it(name, make_model, make_engine, tokenizer):
    model = make_model("llama")
    model.generation_config.eos_token_id = [3, 4]
    requests = [Request((5, 6), 60, seed) for seed in range(40)]
    completions = make_engine(name, model, eos=True).generate(requests, HOT, purpose="policy", keep=True)
    eos = {3, 4, tokenizer.eos_token_id}
    free = make_engine(name, make_model("llama")).generate(requests, HOT, purpose="policy", keep=True)
    for completion, unbounded in zip(completions, free, strict=True):
        ends = [i for i, token in enumerate(unbounded.token_ids) if token in eos]
        assert completion.token_ids == unbounded.token_ids[: ends[0] + 1 if ends else None]
        assert completion.finish_reason == ("eos" if ends else "length")
    assert {c.finish_reason for c in completions} >= {"eos"}


@EVERY
def test_stop_strings_end_where_the_text_first_holds_one(name, make_engine, tokenizer):
    stop = ("a", "xy", " 7")
    prefix = tuple(tokenizer.encode("xyaxy 7 a"))  # those of the prefix do not count
    requests = [Request(prefix, 40, seed) for seed in range(30)]
    engine = make_engine(name)
    free = engine.generate(requests, HOT, purpose="eval", keep=False)
    stopped = engine.generate(requests, SamplingParams(stop=stop), purpose="eval", keep=False)
    for completion, unbounded in zip(stopped, free, strict=True):
        texts = [
            tokenizer.decode(unbounded.token_ids[: n + 1], skip_special_tokens=True)
            for n in range(len(unbounded.token_ids))
        ]
        ends = [n + 1 for n, text in enumerate(texts) if any(s in text for s in stop)]
        assert completion.token_ids == unbounded.token_ids[: ends[0] if ends else None]
        assert completion.finish_reason == ("stop" if ends else "length")
    assert any(c.finish_reason == "stop" for c in stopped)


@pytest.fixture(scope="module")
def chunky():
    """A tokenizer whose tokens hold up to three characters, so that a stop string begins and ends inside of tokens."""
    rng = random.Random(3)
    return make_symbol_tokenizer({"a", "b", "\n"} | {"".join(rng.choices("ab\n", k=3)) for _ in range(60)})


@EVERY
def test_a_vine_that_repeats_a_rollout_ends_where_it_did(name, make_model, make_engine, chunky):
    """Greedy, so that it does repeat it; from every state of the rollout."""
    model = make_model("llama", vocab_size=len(chunky))
    engine = make_engine(name, model, words=chunky)
    ended = inside = 0
    for i in range(6):
        prompt = tuple(random.Random(i).choices(range(len(chunky) - 3), k=5))
        (free,) = engine.generate([Request(prompt, 20, 0)], GREEDY, purpose="policy", keep=True)
        text = chunky.decode(free.token_ids, skip_special_tokens=True)
        stop = (text[9 + i : 14 + i],)
        params = SamplingParams(temperature=0, stop=stop)
        (rollout,) = engine.generate([Request(prompt, 20, 0)], params, purpose="policy", keep=True)
        whole = rollout.token_ids
        requests = [Request(prompt + whole[:b], 20 - b, 0, num_response_tokens=b) for b in range(1, len(whole))]
        for b, vine in enumerate(engine.generate(requests, params, purpose="vine", keep=False), 1):
            assert whole[:b] + vine.token_ids == whole
            assert vine.finish_reason == rollout.finish_reason
        ended += rollout.finish_reason == "stop"
        inside += any(chunky.decode(whole[:-1]).endswith(stop[0][:n]) for n in range(1, 5))
    assert ended == 6
    assert inside > 2, "no vine began inside of a stop string"


@EVERY
def test_every_completion_is_handed_out_once_as_it_ends(name, make_engine, make_requests):
    requests, completed = make_requests(40, seed=6), []
    completions = make_engine(name, max_batch=8).generate(
        requests, HOT, purpose="vine", keep=False, on_complete=lambda i, completion: completed.append((i, completion))
    )
    assert sorted(i for i, _ in completed) == list(range(40))
    assert all(completions[i] == completion for i, completion in completed)
    assert [i for i, _ in completed] != list(range(40)), "the shorter ones end first"


@EVERY
def test_one_new_token(name, make_model, make_engine):
    model = make_model("llama-gqa-tied")
    requests = [Request((1, 2), 1, seed) for seed in range(5)]
    completions = make_engine(name, model).generate(requests, HOT, purpose="policy", keep=True)
    assert [len(c.token_ids) for c in completions] == [1] * 5
    check_logprobs(model, requests, completions)


@EVERY
def test_the_context_ends_a_completion(name, make_engine):
    engine = make_engine(name)
    full, almost = (Request((1,) * n, 500, 0) for n in (100, 127))
    completions = engine.generate([full, almost], HOT, purpose="policy", keep=True)
    assert [len(c.token_ids) for c in completions] == [28, 1]
    assert {c.finish_reason for c in completions} == {"length"}
    with pytest.raises(UserError, match="context of 128"):
        engine.generate([Request((1,) * 128, 1, 0)], HOT, purpose="policy", keep=True)


@EVERY
@pytest.mark.parametrize("request_", [Request((), 5, 0), Request((1,), 0, 0), Request((64,), 5, 0)])
def test_impossible_requests_are_the_users_error(name, request_, make_engine):
    with pytest.raises(UserError):
        make_engine(name).generate([request_], HOT, purpose="policy", keep=True)


@EVERY
def test_no_requests_no_completions(name, make_engine):
    assert make_engine(name).generate([], HOT, purpose="policy", keep=True) == []


@EVERY
@pytest.mark.parametrize("family", ["llama", "llama-gqa-tied"])
def test_loaded_weights_decide_what_is_sampled_next(name, family, make_model, make_engine, make_requests):
    new = make_model(family, seed=9)
    model = make_model(family)
    engine = make_engine(name, model)
    requests = make_requests(6, seed=2)
    before = engine.generate(requests, GREEDY, purpose="policy", keep=True)
    state = {path: tensor.clone() for path, tensor in new.state_dict().items()}
    if family == "llama-gqa-tied":
        del state["lm_head.weight"]
    engine.load_weights(state, version=3)
    for tensor in state.values():
        tensor.zero_()  # the engine keeps its own copy
    after = engine.generate(requests, GREEDY, purpose="policy", keep=True)
    assert [c.policy_version for c in before + after] == [0] * 6 + [3] * 6
    for request, completion in zip(requests, after, strict=True):
        assert completion.token_ids == greedy_tokens(new, request.prefix_ids, request.max_new_tokens)
    with pytest.raises(ValueError, match=r"embed|parameter"):
        engine.load_weights({}, version=4)


@EVERY
@pytest.mark.parametrize("params", [GREEDY, HOT, SamplingParams(0.7, top_p=0.8), SamplingParams(top_k=5)], ids=str)
@pytest.mark.parametrize("vocab_size", [64, 700])
def test_logits_that_are_not_finite_are_said_to_be(name, params, vocab_size, make_model, make_engine):
    model = make_model("llama", vocab_size=vocab_size)
    engine = make_engine(name, model)
    state = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    requests = [Request((1, 2, 3 + i), 5, i) for i in range(4)]
    for spoil in (lambda w: w.fill_(torch.nan), lambda w: w[7].fill_(torch.nan), lambda w: w.mul_(3e38)):
        spoiled = {**state, "lm_head.weight": state["lm_head.weight"].clone()}
        spoil(spoiled["lm_head.weight"])
        engine.load_weights(spoiled, version=3)
        with pytest.raises(UserError, match="logits are not finite after iteration 3"):
            engine.generate(requests, params, purpose="vine", keep=False)
    engine.load_weights(state, version=4)
    assert all(
        math.isfinite(x) for c in engine.generate(requests, params, purpose="vine", keep=False) for x in c.logprobs
    )


@EVERY
def test_training_the_given_model_does_not_touch_the_engine(name, make_model, make_engine):
    model = make_model("llama")
    engine, request = make_engine(name, model), Request((1, 2, 3), 10, 0)
    before = engine.generate([request], GREEDY, purpose="eval", keep=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    assert engine.generate([copy.copy(request)], GREEDY, purpose="eval", keep=False) == before


def test_unknown_architectures_and_scalings_name_the_other_engine(make_model, make_engine):
    with pytest.raises(UserError, match=r"'gpt2'.*engine.name = \"hf\""):
        make_engine("torch", "gpt2")
    model = make_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UserError, match=r"'dynamic'.*engine.name = \"hf\""):
        make_engine("torch", model)


def test_a_model_that_reads_padding_is_refused(make_engine):
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=64, context_length=64, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    model = RwkvForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    with pytest.raises(UserError, match="rwkv: it reads the padding"):
        make_engine("hf", model)


def test_a_sliding_window_that_may_be_exceeded_is_refused(make_model, make_engine):
    model = make_model("mistral-head-dim")
    model.config.sliding_window = 32
    engine = make_engine("torch", model)
    engine.generate([Request((1,) * 20, 12, 0)], HOT, purpose="policy", keep=True)
    with pytest.raises(UserError, match="sliding window of 32"):
        engine.generate([Request((1,) * 20, 13, 0)], HOT, purpose="policy", keep=True)


@pytest.mark.skipif(not Path("models/smollm2-135m").exists(), reason="run `make smollm2` first")
@pytest.mark.parametrize("name", ["torch", "native"])
def test_smollm2_is_exact(name, make_engine):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = "models/smollm2-135m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        "The capital of France is",
        "Question: 3 apples and 4 pears, how many fruits?\nAnswer:",
        "def add(a, b):",
    ]
    requests = [Request(tuple(tokenizer.encode(prompt)), 64, 0) for prompt in prompts]
    completions = make_engine(name, model).generate(requests, GREEDY, purpose="eval", keep=False)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids == greedy_tokens(model, request.prefix_ids, 64)
    check_logprobs(model, requests, completions)


def test_a_special_token_is_no_stop_string(tokenizer):
    with pytest.raises(UserError, match="<eos>"):
        StopRule(tokenizer, frozenset(), ("<eos>",))
