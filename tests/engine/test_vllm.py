"""The real vLLM, on whatever it was built for, against transformers and the torch engine. `make test-vllm` runs this.

Starting vLLM takes half a minute, so one engine serves most tests, and one run dies several deaths.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import tomli_w
import torch

from vineppo.engine.vllm.engine import check_version
from vineppo.types import Request, SamplingParams, UserError

INSTALLED = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="run `make test-vllm`")
GREEDY, HOT = SamplingParams(temperature=0), SamplingParams()
SIZES = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 32}  # vLLM's smallest head on CPU
TOLERANCE = 1e-3  # of log-probs: vLLM's float32 kernels on CPU round coarser than torch's
OPTIONS = {"max_batch": 24, "kv_cache_gb": 0.25}


@pytest.fixture(scope="module")
def model(make_model):
    model = make_model("llama-gqa-tied", **SIZES)
    model.generation_config.eos_token_id = [3, 4]
    return model


@pytest.fixture(scope="module")
def engine(make_engine, model):
    return make_engine("vllm", model, eos=True, **OPTIONS)


@pytest.fixture
def torch_engine(make_engine, model, engine):
    engine.load_weights(model.state_dict(), version=0)
    return make_engine("torch", model, eos=True)


@pytest.fixture(scope="module")
def requests():
    """Prefixes that repeat, extend others, and hold several of vLLM's blocks; seeds of all 64 bits."""
    rng = random.Random(0)
    ids = [5 + rng.randrange(59) for _ in range(100)]
    return [Request(tuple(ids[: rng.randint(1, 90)]), rng.randint(1, 25), rng.getrandbits(64)) for _ in range(60)]


def greedy_tokens(model, request):
    ids = torch.tensor([request.prefix_ids])
    eos = [3, 4, 41]
    out = model.generate(ids, do_sample=False, max_new_tokens=request.max_new_tokens, pad_token_id=0, eos_token_id=eos)
    return tuple(out[0, ids.shape[1] :].tolist())


@torch.no_grad()
def check_logprobs(model, requests, completions, temperature=1.0):
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.prefix_ids, *completion.token_ids]])
        logits = model(ids).logits[0, len(request.prefix_ids) - 1 : -1].float() / temperature
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert (torch.tensor(completion.logprobs) - expected).abs().max() < TOLERANCE


def check_equal(left, right):
    """But for draws so near to the border between two tokens that rounding decides; others' draws are never equal."""
    pairs = list(zip(left, right, strict=True))
    same = [(a, b) for a, b in pairs if (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)]
    assert len(same) >= 0.95 * len(pairs)
    for a, b in same:
        assert a.logprobs == pytest.approx(b.logprobs, abs=TOLERANCE)


@needs_vllm
def test_greedy_tokens_equal_transformers(engine, torch_engine, model, requests):
    before = engine.usage["policy"]
    completions = engine.generate(requests, GREEDY, purpose="policy", keep=True)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids == greedy_tokens(model, request)
    check_logprobs(model, requests, completions)
    assert engine.usage["policy"] - before == sum(len(c.token_ids) for c in completions)


@needs_vllm
@pytest.mark.parametrize(
    "params", [HOT, SamplingParams(0.7, top_p=0.8), SamplingParams(1.3, top_k=5), SamplingParams(0.9, 0.9, 7)]
)
def test_a_seed_draws_what_it_draws_in_the_torch_engine(params, engine, torch_engine, model, requests):
    """Which makes all its laws this engine's: order, endings by eos, stop and length, and draws by the seed alone."""
    completed = {}
    completions = engine.generate(requests, params, purpose="policy", keep=True, on_complete=completed.__setitem__)
    assert completed == dict(enumerate(completions))
    assert {c.policy_version for c in completions} == {0}
    check_equal(completions, torch_engine.generate(requests, params, purpose="policy", keep=True))
    check_logprobs(model, requests, completions, params.temperature)
    assert {c.finish_reason for c in completions} == {"eos", "length"}


@needs_vllm
@pytest.mark.parametrize("params", [GREEDY, HOT, SamplingParams(0.9, 0.8, 20, ("a", "xy", " 7"))], ids=str)
def test_alternatives_are_those_of_the_torch_engine(params, engine, torch_engine, requests):
    asked, plain = replace(params, num_alternatives=5), engine.generate(requests, params, purpose="x", keep=False)
    completions = engine.generate(requests, asked, purpose="x", keep=False)
    check_equal(completions, plain)
    compared = 0
    for ours, theirs in zip(completions, torch_engine.generate(requests, asked, purpose="x", keep=False), strict=True):
        assert len(ours.alternatives) == len(ours.token_ids)
        for left, right in zip(ours.alternatives, theirs.alternatives, strict=False):
            if [token for token, _ in left] == [token for token, _ in right]:  # but for neighbours that are near ties
                assert [x for _, x in left] == pytest.approx([x for _, x in right], abs=TOLERANCE)
                compared += 1
    assert compared > 0.9 * sum(len(completion.token_ids) for completion in completions)


@needs_vllm
def test_stop_strings_end_where_they_do_in_the_torch_engine(engine, torch_engine, requests, tokenizer):
    params = SamplingParams(stop=("a", "xy", " 7", "\n"))
    completions = engine.generate(requests, params, purpose="eval", keep=False)
    check_equal(completions, torch_engine.generate(requests, params, purpose="eval", keep=False))
    assert {c.finish_reason for c in completions} == {"eos", "stop", "length"}
    for completion in completions:
        texts = [
            tokenizer.decode(completion.token_ids[:n], skip_special_tokens=True)
            for n in range(len(completion.token_ids) + 1)
        ]
        held = [any(stop in text for stop in params.stop) for text in texts]
        assert not any(held[:-1])
        assert held[-1] == (completion.finish_reason == "stop")


@needs_vllm
def test_a_seed_alone_decides_a_completion(engine, torch_engine, requests):
    together = engine.generate(requests, HOT, purpose="vine", keep=False)
    order = random.Random(1).sample(range(len(requests)), len(requests))
    shuffled = engine.generate([requests[i] for i in order], HOT, purpose="vine", keep=False)
    check_equal([shuffled[order.index(i)] for i in range(len(requests))], together)
    alone = [engine.generate([request], HOT, purpose="vine", keep=False)[0] for request in requests[:10]]
    assert sum(a.token_ids == b.token_ids for a, b in zip(alone, together, strict=False)) >= 9
    prefix = requests[0].prefix_ids
    seeds = [Request(prefix, 12, seed) for seed in (1, 2, 2**64 - 1, 1)]
    drawn = [c.token_ids for c in engine.generate(seeds, HOT, purpose="vine", keep=False)]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3


@needs_vllm
def test_lengths(engine, torch_engine):
    """One token; the context's end; nothing at all; and what cannot be."""
    ones = engine.generate([Request((5, 6), 1, seed) for seed in range(5)], HOT, purpose="policy", keep=True)
    assert [len(c.token_ids) for c in ones] == [1] * 5
    cut = [Request((7,) * n, 500, 0) for n in (100, 127)]
    check_equal(
        engine.generate(cut, HOT, purpose="x", keep=False), torch_engine.generate(cut, HOT, purpose="x", keep=False)
    )
    assert engine.generate([], HOT, purpose="policy", keep=True) == []
    for impossible in (Request((), 5, 0), Request((1,), 0, 0), Request((64,), 5, 0), Request((1,) * 128, 1, 0)):
        with pytest.raises(UserError):
            engine.generate([impossible], HOT, purpose="policy", keep=True)


@needs_vllm
def test_loaded_weights_decide_what_is_sampled_next(engine, torch_engine, requests, make_model):
    """The prefixes are in vLLM's cache from before, so a cache that was kept would show."""
    new = make_model("llama-gqa-tied", seed=9, **SIZES)
    before = engine.generate(requests, GREEDY, purpose="policy", keep=True)
    state = {path: tensor.clone() for path, tensor in new.state_dict().items() if path != "lm_head.weight"}
    engine.load_weights(state, version=3)
    for tensor in state.values():
        tensor.zero_()
    after = engine.generate(requests, GREEDY, purpose="policy", keep=True)
    assert {c.policy_version for c in before} == {0}
    assert {c.policy_version for c in after} == {3}
    assert [c.token_ids for c in after] == [greedy_tokens(new, request) for request in requests]
    check_logprobs(new, requests, after)
    with pytest.raises(ValueError, match=r"missing.*embed"):
        engine.load_weights({}, version=4)


@needs_vllm
@pytest.mark.parametrize("family", ["llama-biases", "qwen2"])
def test_other_families(family, make_model, make_engine, requests):
    model, new = make_model(family, **SIZES), make_model(family, seed=9, **SIZES)
    for each in (model, new):
        each.generation_config.eos_token_id = [3, 4]
    engine = make_engine("vllm", model, eos=True, **OPTIONS)
    first = engine.generate(requests, GREEDY, purpose="x", keep=False)
    engine.load_weights(new.state_dict(), version=1)
    second = engine.generate(requests, GREEDY, purpose="x", keep=False)
    assert [c.token_ids for c in first] == [greedy_tokens(model, request) for request in requests]
    assert [c.token_ids for c in second] == [greedy_tokens(new, request) for request in requests]


@needs_vllm
def test_what_vllm_cannot_run_is_the_users_error(make_engine):
    with pytest.raises(UserError, match="vLLM cannot start"):
        make_engine("vllm", "llama", kv_cache_gb=1e-6)


@pytest.mark.skipif(INSTALLED, reason="it is installed")
def test_a_missing_vllm_is_the_users_error(make_engine):
    with pytest.raises(UserError, match=r'pip install "vineppo\[vllm\]"'):
        make_engine("vllm", "llama")


@pytest.mark.parametrize("version", ["0.31.9", "0.8.5", "1.0.0", "0.99.0+cpu"])
def test_an_unsupported_version_is_named(version):
    with pytest.raises(UserError, match=f"vLLM {version.replace('+', '.')}"):
        check_version(version)
    check_version("0.32.0+cpu")


RECIPE = {
    "name": "mortal",
    "task": {"name": "arithmetic", "num_steps": [1, 2], "num_test": 20},
    "model": {"from_scratch": {"num_layers": 1, "hidden_size": 64, "num_heads": 2, "ffn_size": 64}},
    "engine": {"name": "vllm", "dtype": "float32", **OPTIONS},
    "sampling": {"prompts_per_iteration": 4, "group_size": 2, "max_new_tokens": 24},
    "credit": {"name": "vineppo", "num_vines": 2},
    "train": {"num_iterations": 40, "num_epochs": 1, "minibatch_size": 4},
    "learner": {"precision": "float32", "optim": {"lr": 1e-3}},  # the tolerance is of float32, on every processor
    "evaluation": {"every": 0, "num_samples": 1, "max_new_tokens": 12},
    "checkpoint": {"every": 1, "keep_last": 2},
}


class Life:
    """One process of a run, and what is left of it."""

    def __init__(self, recipe, folder, *flags):
        import psutil

        self.metrics = folder / "metrics.jsonl"
        self.log = folder.parent / "output.txt"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "vineppo.cli", "train", str(recipe), "--out", str(folder), *flags]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.psutil = psutil.Process(self.process.pid)

    def iterations(self):
        return len(self.metrics.read_text().splitlines()) if self.metrics.exists() else 0

    def wait_for_iteration(self, n):
        while self.iterations() < n and self.process.poll() is None:
            time.sleep(0.02)
        assert self.process.poll() is None, self.log.read_text()
        self.children = self.psutil.children(recursive=True)
        return self

    def end(self):
        """The exit code, once nothing of the run is left; at most a minute later."""
        code = self.process.wait(timeout=300)
        deadline = time.monotonic() + 60
        while any(child.is_running() and child.status() != "zombie" for child in self.children):
            assert time.monotonic() < deadline, f"left over: {self.children}"
            time.sleep(0.1)
        return code, self.log.read_text()


@needs_vllm
def test_a_run_survives_the_deaths_of_vllm_and_its_own(tmp_path):
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(tomli_w.dumps(RECIPE))

    life = Life(recipe, folder).wait_for_iteration(2)
    core = next(child for child in life.children if "EngineCor" in child.name())
    core.kill()
    code, output = life.end()
    assert code == 2
    assert "vineppo: vLLM's process has died" in output
    reached = life.iterations()

    life = Life(recipe, folder, "--resume").wait_for_iteration(reached + 2)
    os.killpg(life.process.pid, signal.SIGINT)  # as Ctrl-C does: to the run and to vLLM's processes
    code, output = life.end()
    assert code == 130
    assert "continue with --resume" in output
    reached = life.iterations()

    life = Life(recipe, folder, "--resume").wait_for_iteration(reached + 2)
    life.process.kill()
    assert life.end()[0] == -signal.SIGKILL
    reached = life.iterations()

    life = Life(recipe, folder, "--resume").wait_for_iteration(reached)
    code, output = life.end()
    assert code == 0, output
    lines = [json.loads(line) for line in life.metrics.read_text().splitlines()]
    assert len(lines) == RECIPE["train"]["num_iterations"]
    assert max(line["policy/engine_logprob_diff_max"] for line in lines) < TOLERANCE
    assert all(line["tokens/vine"] > 0 for line in lines)


def test_importing_the_engines_imports_no_vllm():
    code = "import sys, vineppo.engine; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
