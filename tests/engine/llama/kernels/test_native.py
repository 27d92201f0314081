"""The kernels in C++ against those in PyTorch, at any shape, and what happens where they cannot be built."""

import subprocess
import sys

import pytest
import torch

from vineppo.engine import engine_inputs
from vineppo.engine.llama.attention import DecodeBatch
from vineppo.engine.llama.engine import TorchEngine
from vineppo.engine.llama.kernels import native
from vineppo.engine.llama.kernels.native import NativeKernels, why_not_native
from vineppo.engine.llama.kernels.plain import TorchKernels
from vineppo.engine.llama.kv_cache import SlotKV
from vineppo.types import UserError

CPU = torch.device("cpu")
REASON = why_not_native(torch.float32, CPU)
needs_native = pytest.mark.skipif(REASON is not None, reason=str(REASON))


ERROR = {torch.float32: 1e-5, torch.bfloat16: 5e-2}


@needs_native
@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("head_dim", [2, 24, 32, 64, 80, 128])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (9, 3), (8, 2)])
def test_attention(head_dim, num_heads, num_kv_heads, dtype):
    torch.manual_seed(head_dim)
    num_rows, num_own, num_trunks, trunk_room, own_room = 23, 17, 5, 40, 11
    size = 2 * 2 * num_kv_heads * head_dim
    flat = [torch.randn(size * n).to(dtype) for n in (num_trunks * trunk_room, num_own * own_room)]
    lengths = torch.randint(1, trunk_room + 1, (num_rows,)).tolist()
    slots = torch.randint(num_trunks, (num_rows,)).tolist()
    own_lengths = [*range(own_room), *torch.randint(own_room, (num_own - own_room,)).tolist()]
    q = torch.randn(num_rows, num_heads, head_dim).to(dtype)
    # Heads of rows that lie apart, as in a fused product's output.
    k, v = torch.randn(num_rows, 5 + 2 * num_kv_heads, head_dim).to(dtype)[:, 5:].chunk(2, dim=1)
    outputs, caches = [], []
    for kernels in (TorchKernels(), NativeKernels(dtype)):
        trunk_kv = SlotKV(flat[0].clone(), 2, num_trunks, num_kv_heads, trunk_room, head_dim)
        own_kv = SlotKV(flat[1].clone(), 2, num_own, num_kv_heads, own_room, head_dim)
        attend = kernels.decode_attention(DecodeBatch(trunk_kv, own_kv, slots, lengths, own_lengths, head_dim**-0.5))
        outputs.append(attend(1, q.clone(), k, v))
        caches.append(own_kv.kv)
    assert torch.equal(*caches)
    assert (outputs[0] - outputs[1]).abs().max() < ERROR[dtype]


@needs_native
def test_attention_refuses_what_lies_outside_of_its_memory():
    kv, kernels = SlotKV(torch.zeros(2 * 3 * 10 * 4), 1, 3, 1, 10, 4), NativeKernels(torch.float32)
    for slots, lengths, own in [([3], [1], []), ([-1], [1], []), ([0], [11], []), ([0], [0], []), ([0], [1], [10])]:
        with pytest.raises(AssertionError):
            kernels.decode_attention(DecodeBatch(kv, kv, slots, lengths, own, 1.0))
    with pytest.raises(AssertionError):
        kernels.decode_attention(DecodeBatch(kv, kv, [0] * 4, [1] * 4, [0] * 4, 1.0))
    attend = kernels.decode_attention(DecodeBatch(kv, kv, [0], [1], [0], 1.0))
    x = torch.zeros(1, 1, 4)
    with pytest.raises(AssertionError):
        attend(0, x.double(), x, x)
    with pytest.raises(AssertionError):
        attend(0, torch.zeros(2, 1, 4), x, x)


@needs_native
@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("width", [2, 30, 64, 576])
def test_elementwise(width, dtype):
    torch.manual_seed(width)
    x, weight = torch.randn(13, width).to(dtype), torch.randn(width).to(dtype)
    heads = torch.randn(13, 7, width).to(dtype)
    cos, sin = torch.randn(2, 13, 1, width // 2).to(dtype)
    huge = torch.cat((torch.tensor([[-200.0, 200.0]], dtype=dtype).expand(13, 2), x), dim=1)
    ours, theirs, error = NativeKernels(dtype), TorchKernels(), ERROR[dtype]
    for name, inputs in {
        "rms_norm": (x, weight, 1e-5),
        "rotate": (heads[:, 1:6], cos, sin),
        "gated": (torch.cat((huge, huge), dim=1), "silu"),
    }.items():
        expected = getattr(theirs, name)(*inputs).clone()
        torch.testing.assert_close(getattr(ours, name)(*inputs), expected, rtol=error, atol=error)
    gelu = torch.randn(3, 8).to(dtype)
    assert torch.equal(ours.gated(gelu.clone(), "gelu"), theirs.gated(gelu, "gelu"))


@needs_native
def test_bfloat16_is_rounded_as_in_torch():
    """To the nearest, ties to even, whatever the size: turned by no angle, numbers are multiplied once."""
    numbers = torch.randn(64, 33) * torch.logspace(-30, 30, 64)[:, None]
    halves = numbers.bfloat16()
    one, zero = torch.ones(64, 1, 16, dtype=torch.bfloat16), torch.zeros(64, 1, 16, dtype=torch.bfloat16)
    turned = NativeKernels(torch.bfloat16).rotate(halves[:, None, 1:].clone(), one / 3, zero)
    exact = halves[:, None, 1:].float() * (one / 3)[0, 0, 0].float()
    assert torch.equal(turned, exact.bfloat16())


def test_without_a_compiler_pytorch_does_it(monkeypatch, make_model, tokenizer):
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    native.load_library.cache_clear()
    try:
        assert "no-such-compiler" in (why_not_native(torch.float32, CPU) or "")
        engine = TorchEngine(TorchEngine.Config(), *engine_inputs(make_model("llama"), tokenizer))
        assert type(engine.model.kernels) is TorchKernels
        with pytest.raises(UserError, match=r"engine.kernels = \"native\".*no-such-compiler"):
            TorchEngine(TorchEngine.Config(kernels="native"), *engine_inputs(make_model("llama"), tokenizer))
    finally:
        native.load_library.cache_clear()


@needs_native
def test_a_compiler_that_fails_says_so(monkeypatch, tmp_path):
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(native, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load_library.cache_clear()
    try:
        assert "failed" in (why_not_native(torch.float32, CPU) or "")
        assert not list(tmp_path.rglob("*.so"))
    finally:
        native.load_library.cache_clear()


@needs_native
@pytest.mark.parametrize("num_rows", [3, 700])  # less and more than what is shared out among threads
def test_numbers_do_not_depend_on_threads(num_rows):
    torch.manual_seed(0)
    before, kernels, head_dim = torch.get_num_threads(), NativeKernels(torch.float32), 32
    flat, x = torch.randn(2 * 2 * 20 * 10 * head_dim), torch.randn(num_rows, 6, head_dim)
    q, k, v = x.split((4, 1, 1), dim=1)
    slots, lengths = torch.randint(20, (num_rows,)).tolist(), torch.randint(1, 11, (num_rows,)).tolist()
    trunk_kv = SlotKV(flat, 1, 20, 1, 10, head_dim)
    cos, sin = torch.randn(2, num_rows, 1, head_dim // 2)
    found = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            own_kv = SlotKV(torch.zeros(2 * num_rows * 10 * head_dim), 1, num_rows, 1, 10, head_dim)
            attend = kernels.decode_attention(DecodeBatch(trunk_kv, own_kv, slots, lengths, [0] * num_rows, 1.0))
            normed = kernels.rms_norm(x.flatten(1), torch.ones(6 * head_dim), 1e-5)
            rotated = kernels.rotate(x.clone(), cos, sin)
            found.append([attend(0, q, k, v), normed, rotated, kernels.gated(x.flatten(1), "silu")])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@needs_native
def test_loading_leaves_the_rest_of_the_process_its_denormal_numbers():
    code = (
        "import torch; from vineppo.engine.llama.kernels.native import load_library; load_library('float');"
        "assert (torch.full((64,), 1e-40) * 0.5 > 0).all()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_on_cpu_only():
    assert "float16" in (why_not_native(torch.float16, CPU) or "")
    assert "cuda" in (why_not_native(torch.float32, torch.device("cuda")) or "")
