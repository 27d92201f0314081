"""The kernels in Triton against those in PyTorch, and steps of fixed size.

On a GPU they run there, in CUDA graphs. Elsewhere Triton's interpreter runs them on the CPU, and its compiler, which
needs no GPU, shows that they compile for one. The interpreter does not know bfloat16, so half precision is float16.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from vineppo.engine import engine_inputs
from vineppo.engine.llama.attention import DecodeBatch
from vineppo.engine.llama.engine import TorchEngine
from vineppo.engine.llama.kernels.choose import best_kernels, make_decode, make_kernels, why_not_triton
from vineppo.engine.llama.kernels.graphs import FixedSizeSteps, next_size
from vineppo.engine.llama.kernels.plain import TorchKernels
from vineppo.engine.llama.kernels.triton import LAYOUT, TritonAttention, TritonKernels, pack
from vineppo.engine.llama.kv_cache import SlotKV
from vineppo.engine.llama.model import Llama
from vineppo.types import Request, SamplingParams, UserError

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.bfloat16 if CUDA else torch.float16
ERROR = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
HOT = SamplingParams(temperature=1.0)
# Of idle rows, whose numbers are whatever was in memory.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def make_batch(heads, kv_heads, head_dim, dtype, rounded):
    """A batch over random keys and values of two layers, and what is multiplied with them."""
    num_rows, num_own, num_trunks, rooms = 45, 30, 2, (40, 37)
    numbers = torch.Generator().manual_seed(head_dim)

    def randn(*shape):
        return torch.randn(shape, generator=numbers).to(DEVICE, rounded).to(dtype)

    per_token = 2 * 2 * kv_heads * head_dim
    trunk_size = per_token * num_trunks * rooms[0]
    flat = randn(trunk_size + per_token * num_own * rooms[1])
    trunk_kv = SlotKV(flat, 2, num_trunks, kv_heads, rooms[0], head_dim)
    own_kv = SlotKV(flat[trunk_size:], 2, num_own, kv_heads, rooms[1], head_dim)
    lengths = torch.randint(1, rooms[0] + 1, (num_rows,), generator=numbers).tolist()
    slots = torch.randint(num_trunks, (num_rows,), generator=numbers).tolist()
    own_lengths = torch.randint(rooms[1], (num_own,), generator=numbers).tolist()
    q = randn(num_rows, heads, head_dim)
    # Heads of rows that lie apart, as in a fused product's output.
    k, v = randn(num_rows, 5 + 2 * kv_heads, head_dim)[:, 5:].chunk(2, 1)
    return flat, DecodeBatch(trunk_kv, own_kv, slots, lengths, own_lengths, head_dim**-0.5), (q, k, v)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("head_dim", [2, 24, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (20, 2)])
def test_attention(heads, kv_heads, head_dim, dtype):
    stored, batch, qkv = make_batch(heads, kv_heads, head_dim, torch.float32, dtype)
    before = stored.clone()
    expected = TorchKernels().decode_attention(batch)(1, *qkv)
    flat, batch, qkv = make_batch(heads, kv_heads, head_dim, dtype, dtype)
    found = TritonKernels().decode_attention(batch)(1, *qkv)
    assert found.dtype == dtype
    assert torch.equal(flat.float(), stored)
    assert not torch.equal(stored, before)
    assert (found - expected).abs().max() < ERROR[dtype]


def test_idle_rows_change_nothing():
    flat, batch, qkv = make_batch(6, 3, 16, torch.float32, torch.float32)
    expected, stored = TritonKernels().decode_attention(batch)(1, *qkv), flat.clone()
    packed = torch.from_numpy(pack(batch, 64)).to(DEVICE)
    assert len(packed) == LAYOUT.value + 5 * 64 + 1
    padded = [torch.cat((x, torch.full_like(x[:1], torch.nan).expand(19, -1, -1))) for x in qkv]
    found = TritonAttention(packed, batch.trunk_kv, batch.scale)(1, *padded)
    assert torch.equal(found[:45], expected)
    assert torch.equal(flat, stored)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("width", [2, 30, 576])
def test_elementwise(width, dtype):
    numbers = torch.Generator().manual_seed(width)

    def randn(*shape):
        return torch.randn(*shape, generator=numbers).to(DEVICE, dtype)

    x, weight = randn(5, 3, width), randn(width)
    heads, cos, sin = randn(13, 7, width), randn(13, 1, width // 2), randn(13, 1, width // 2)
    huge = torch.tensor([[-200.0, 200.0]], device=DEVICE, dtype=dtype).expand(13, 2)
    gate_up = torch.cat((huge, heads[:, 0], heads[:, 1], huge), dim=1)
    triton, pytorch = TritonKernels(), TorchKernels()
    for name, inputs in {
        "rms_norm": (x[:, :2], weight, 1e-5),
        "rotate": (heads[:, 1:6], cos, sin),
        "gated": (gate_up, "silu"),
    }.items():
        expected = getattr(pytorch, name)(*inputs).clone()
        torch.testing.assert_close(
            getattr(triton, name)(*inputs), expected, rtol=ERROR[dtype], atol=ERROR[dtype], msg=name
        )
    gelu = randn(3, 8)
    assert torch.equal(triton.gated(gelu.clone(), "gelu"), pytorch.gated(gelu, "gelu"))


def test_sizes():
    sizes = [next_size(n) for n in range(1, 2000)]
    assert all(0 <= size - n < max(8, n / 8 + 1) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 70


@pytest.mark.parametrize("family", ["llama-biases", "qwen3-tied"])
def test_the_engine_draws_what_it_draws_with_pytorchs_kernels(family, make_model, make_engine, make_requests):
    """Through policy samples, vines of theirs, new weights and memory that is laid out anew."""
    model = make_model(family).to(DEVICE)
    rollouts = [Request((1, 2, 3 + p), 6, 10 * p + g) for p in range(2) for g in range(3)]
    drawn = {}
    for kernels in ("torch", "triton"):
        engine = make_engine("torch", model, kernels=kernels)
        first = engine.generate(rollouts, HOT, purpose="policy", keep=True)
        states = [r.prefix_ids + c.token_ids[:cut] for r, c in zip(rollouts, first, strict=True) for cut in (0, 4)]
        vines = [Request(state, 4, 100 * i + k) for i, state in enumerate(states) for k in range(2)]
        second = engine.generate(vines, HOT, purpose="vine", keep=False)
        engine.load_weights(make_model(family, seed=1).state_dict(), version=1)
        third = engine.generate(rollouts, HOT, purpose="policy", keep=True)
        drawn[kernels] = first + second + third
    for one, other in zip(drawn["torch"], drawn["triton"], strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_steps_are_made_once_for_each_size_until_memory_moves(make_model):
    source = make_model("llama").to(DEVICE)
    model = Llama(source.config, source.state_dict(), torch.float32, make_kernels("triton", torch.float32))
    decode = make_decode("triton", model)
    assert isinstance(decode, FixedSizeSteps)
    flat = torch.randn(2 * 2 * 4 * 8 * 60, device=DEVICE)

    def logits(rows, flat):
        kv = SlotKV(flat, 2, 3, 4, 10, 8), SlotKV(flat[2 * 2 * 4 * 8 * 30 :], 2, 3, 4, 10, 8)
        batch = DecodeBatch(*kv, [2] * rows, [5] * rows, [1] * min(rows, 3), 1.0)
        return decode([7] * rows, [6] * rows, batch).clone()

    few, again, many = logits(3, flat), logits(3, flat), logits(11, flat)
    assert few.shape == (3, 64)
    assert many.shape == (11, 64)
    assert torch.equal(few, again)
    torch.testing.assert_close(many[:3], few)
    assert sorted(decode.steps) == [8, 16]
    step = id(decode.steps[8])
    logits(2, flat)
    assert id(decode.steps[8]) == step
    for _ in range(3):  # memory moves; nobody holds on to the old steps
        flat = flat.clone()
        torch.testing.assert_close(logits(3, flat), few)
        assert list(decode.steps) == [8]


def test_who_gets_them(monkeypatch, make_model, tokenizer):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = torch.device("cpu")
    assert "not on cpu" in (why_not_triton(cpu) or "")
    assert best_kernels(torch.float32, cpu)[0] != "triton"
    if CUDA:
        assert best_kernels(torch.bfloat16, DEVICE) == ("triton", None)
    with pytest.raises(UserError, match=r"engine.kernels = \"triton\".*not on cpu"):
        TorchEngine(TorchEngine.Config(kernels="triton"), *engine_inputs(make_model("llama"), tokenizer))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vineppo.engine.llama.kernels import triton as kernels

POINTERS = {"packed": "*i64", "prefix": "*fp32", "lse": "*fp32"}
SIZES = {"K": 4, "G": 8, "D": 128, "HEAD": 128}

def compile(kernel, dtype, capability, constants, **pointers):
    kinds = {name: f"*{dtype}" for name in ("out", "q", "k", "v", "kv", "x", "weight", "cos", "sin", "gate_up")}
    kinds |= POINTERS | {"scale": "fp32", "eps": "fp32"} | pointers | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    # As at run time, where memory begins at multiples of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_stages": kernels.NUM_STAGES}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert "q" not in kernel.arg_names or "async_copy_global" in compiled.asm["ttgir"]  # loads run ahead
    assert compiled.metadata.shared < 99 * 1024, (kernel, dtype, compiled.metadata.shared)

for capability, dtype in ((80, "bf16"), (90, "bf16"), (90, "fp32")):
    compile(kernels.prefix_kernel, dtype, capability, SIZES | {"HEADS": kernels.TILE_HEADS}, out="*fp32")
    compile(kernels.own_kernel, dtype, capability, SIZES | {"HEADS": 16})
    for kernel in (kernels.rms_norm_kernel, kernels.rotate_kernel, kernels.swiglu_kernel):
        compile(kernel, dtype, capability, {"BLOCK": 1024})
"""


def test_they_compile_for_gpus(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
