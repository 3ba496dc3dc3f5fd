"""The op packed_linear: its formats, its values and bits, the memory it touches, and what it refuses."""

import ctypes
import mmap

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import PackedWeight, linear, packed_linear
from fastgen.ops._registry import OPS
from fastgen.reference import packed_linear as reference
from fastgen.reference.linear import ACTIVATIONS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import ROUNDING

ISAS = native.usable_isas()
HERE = [name for name in OPS["packed_linear"].implementations if usable("packed_linear", name, "cpu")]
FLOATS, GGUF = ["float32", "bfloat16"], ["q4_0", "q4_1", "q8_0"]
FORMATS = [*FLOATS, "int8", *GGUF]
NUMBER = {name: i for i, name in enumerate(FORMATS)}


def make(rows, inputs, outputs, format="q4_1", seed=0):
    """x, weight, bias, residual."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g) * torch.rand(rows, 1, generator=g)
    weight = PackedWeight.pack(torch.randn(outputs, inputs, generator=g), format)
    return x, weight, torch.randn(outputs, generator=g), torch.randn(rows, outputs, generator=g)


def seen(x, weight):
    """x as it is multiplied with: int8 rounds it, by a rule of its own that is tested below."""
    return reference.rounded(x.float()) if weight.format == "int8" else x


def exact(x, weight, bias, residual):
    return F.linear(seen(x, weight).double(), weight.unpack().double(), bias.double()) + residual.double()


# Formats.


@pytest.mark.parametrize("format", GGUF)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0, 0.0])
def test_packing_and_unpacking_are_those_of_gguf(format, scale):
    gguf = pytest.importorskip("gguf")
    weight = scale * torch.randn(37, 96, generator=torch.Generator().manual_seed(1))
    weight += 0.0  # no negative zero
    weight[3] = 2.0
    weight[4, :32] = 0.0
    kind = gguf.GGMLQuantizationType[format.upper()]
    theirs = gguf.quants.quantize(weight.numpy(), kind)
    packed = PackedWeight.pack(weight, format)
    assert torch.equal(packed.data, torch.from_numpy(theirs))
    assert torch.equal(packed.unpack(), torch.from_numpy(gguf.quants.dequantize(theirs, kind)))


@pytest.mark.parametrize("format", FORMATS)
def test_packing_loses_no_more_than_the_bits_of_the_format(format):
    weight = torch.rand(50, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    allowed = {"float32": 0, "bfloat16": 2**-9, "int8": 1 / 254, "q4_0": 1 / 8 + 1e-3, "q4_1": 1 / 15 + 2e-3}
    assert (PackedWeight.pack(weight, format).unpack() - weight).abs().max() <= allowed.get(
        format, 1 / 254 + 1e-3
    )


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_those_of_the_whole(format):
    weight = make(1, 64, 37, format)[1]
    indices = torch.tensor([[0, 36], [17, 17]])
    assert torch.equal(weight.rows(indices), weight.unpack()[indices])
    assert torch.equal(weight.rows(indices.int()), weight.unpack()[indices])
    assert weight.rows(indices[:0]).shape == (0, 2, 64)
    for bad in (37, -1):
        with pytest.raises(IndexError, match="wanted 0 to 36"):
            weight.rows(torch.tensor([bad]))


def blocks(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def bytes_of(*shape):
    return torch.zeros(shape, dtype=torch.int8)


BAD_WEIGHTS = [
    (lambda: PackedWeight.pack(torch.ones(2, 33), "q4_0"), ValueError, "in is 33, wanted a multiple of 32"),
    (lambda: PackedWeight.pack(torch.ones(2, 32), "q5_0"), ValueError, "format is 'q5_0', wanted one of fl"),
    (lambda: PackedWeight.pack(torch.ones(32), "q4_0"), ValueError, "weight has shape (32,), wanted (out, "),
    (lambda: PackedWeight.pack(torch.ones(2, 32).int(), "int8"), TypeError, "weight is torch.int32"),
    (lambda: PackedWeight.pack([1.0], "int8"), TypeError, "weight is list, wanted a dense floating tensor"),
    (lambda: PackedWeight.pack(torch.full((2, 32), 1e9), "q8_0"), ValueError, "weight holds 1e+09, wanted "),
    (lambda: PackedWeight.pack(torch.full((2, 32), torch.nan), "q4_1"), ValueError, "weight holds nan"),
    (lambda: PackedWeight.pack(torch.full((2, 32), torch.inf), "int8"), ValueError, "weight holds inf"),
    (lambda: PackedWeight(blocks(35), "q4_0", (2, 32)), ValueError, "data has shape (35,), wanted (2, 18)"),
    (lambda: PackedWeight(torch.zeros(36), "q4_0", (2, 32)), TypeError, "data is torch.float32, wanted a "),
    (lambda: PackedWeight(blocks(2, 36)[:, ::2], "q4_0", (2, 32)), ValueError, "data has strides (36, 2)"),
    (lambda: PackedWeight(torch.zeros(32, 16), "float32", (2, 32)), ValueError, "wanted (1, 32, 16) for a "),
    (lambda: PackedWeight(bytes_of(1, 1, 16, 4), "int8", (2, 3)), TypeError, "scale is NoneType"),
    (
        lambda: PackedWeight(bytes_of(1, 1, 16, 4), "int8", (2, 3), torch.ones(3)),
        ValueError,
        "scale has shape (3,)",
    ),
    (lambda: PackedWeight(blocks(36), "q4_0", (2, 32), torch.ones(2)), TypeError, "scale is torch.float32"),
    (lambda: PackedWeight(blocks(36), "q4_0", (-2, 32)), ValueError, "shape is (-2, 32)"),
]


@pytest.mark.parametrize("build, error, message", BAD_WEIGHTS, ids=[message for *_, message in BAD_WEIGHTS])
def test_bad_weights_are_refused_in_one_sentence(build, error, message):
    with pytest.raises(error) as caught:
        build()
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Values.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 64, 3), (2, 32, 16), (3, 96, 33), (17, 160, 31)])
def test_it_is_the_product_with_the_unpacked_weight(backend, format, rows, inputs, outputs):
    x, weight, bias, residual = make(rows, inputs, outputs, format)
    with use_backend(backend):
        came = packed_linear(x, weight, bias, residual=residual)
    # Of each input half a step of 16 bits of the largest in its row is lost at most (in truth, in its block),
    # of each product and sum a few roundings of float32.
    size = x.abs() @ weight.unpack().abs().T
    allowed = 16 * ROUNDING[torch.float32] * (size + 10)
    if backend == "native" and format not in FLOATS:
        allowed += x.abs().amax(1, keepdim=True) / 65534 * weight.unpack().abs().sum(1)
    assert ((came.double() - exact(x, weight, bias, residual)).abs() <= allowed).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 13, 97, 513])
def test_any_number_of_rows(format, rows):
    x, weight, bias, residual = make(rows, 64, 50, format)
    came = packed_linear(x, weight, bias, residual=residual)
    assert torch.allclose(came.double(), exact(x, weight, bias, residual), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", [*FLOATS, "int8"])
@pytest.mark.parametrize("inputs", [0, 1, 31, 33, 127, 130])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_any_number_of_inputs(format, inputs, rows):
    x, weight, bias, residual = make(rows, inputs, 21, format)
    came = packed_linear(x, weight, bias, residual=residual)
    assert torch.allclose(came.double(), exact(x, weight, bias, residual), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_residual_come_after_the_sums(backend, activation):
    x, weight, bias, residual = make(5, 64, 21)
    with use_backend(backend):
        sums = packed_linear(x, weight, bias)
        came = packed_linear(x, weight, bias, activation=activation, residual=residual)
    assert torch.allclose(came, ACTIVATIONS[activation](sums) + residual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("format", ["float32", "q4_1"])
def test_bfloat16_rows_are_widened_and_rounded_once(backend, format):
    x, weight, bias, residual = make(5, 64, 21, format)
    x, residual = x.bfloat16(), residual.bfloat16()
    with use_backend(backend):
        came = packed_linear(x, weight, bias, residual=residual)
        wide = packed_linear(x.float(), weight, bias, residual=residual.float())
    assert came.dtype == torch.bfloat16
    if backend == "triton":  # whose interpreter cuts bits off instead of rounding
        assert torch.allclose(came.float(), wide, rtol=2**-7)
    else:
        assert torch.equal(came, wide.bfloat16())


def test_linear_takes_a_packed_weight():
    x, weight, bias, residual = make(3, 64, 21)
    options = {"activation": "silu", "residual": residual}
    assert torch.equal(linear(x, weight, bias, **options), packed_linear(x, weight, bias, **options))


# The contract of native: the same bits as this model, written from its definition.


def fused(a, b, c):
    """a * b + c with one rounding: exact products and 64 bits of sum leave no tie undecided here."""
    return (a.astype(np.longdouble) * b + c).astype(np.float32)


def rounded_twice(a, b, c):
    return a * b + c


def quantized(x, most=32767):
    """Integers up to `most` (rows, blocks, 32), scale (rows, blocks)."""
    rows, inputs = x.shape
    blocks = np.pad(x, ((0, 0), (0, -inputs % 32))).reshape(rows, -1, 32)
    size = np.maximum(np.abs(blocks).max(-1), np.float32(1e-30))
    inverse = np.float32(most) / size
    return np.rint(blocks * inverse[..., None]).astype(np.int64), size / np.float32(most)


def blocks_of(weight):
    """Integers (outputs, blocks, 32), d, m (outputs, blocks)."""
    outputs, inputs = weight.shape
    if weight.format == "int8":
        panels = weight.data.numpy().astype(np.int64)
        whole = panels.transpose(0, 2, 1, 3).reshape(panels.shape[0] * 16, -1)[:outputs, :inputs]
        q = np.pad(whole, ((0, 0), (0, -inputs % 32))).reshape(outputs, -1, 32)
        return q, np.ones(q.shape[:2], np.float32), None
    head = 4 if weight.format == "q4_1" else 2
    raw = weight.data.numpy().reshape(outputs, inputs // 32, -1)
    halves = np.ascontiguousarray(raw[..., :head]).view(np.float16).astype(np.float32)
    bits = raw[..., head:]
    if weight.format == "q8_0":
        return bits.view(np.int8).astype(np.int64), halves[..., 0], None
    q = np.concatenate([bits & 15, bits >> 4], -1).astype(np.int64)
    return (q, halves[..., 0], halves[..., 1]) if head == 4 else (q - 8, halves[..., 0], None)


def model(x, weight, step):
    """The sums of the integer formats (rows, outputs), as the docstring says."""
    chains, most = (1, 127) if weight.format == "int8" else (4, 32767)
    (q, scale), (w, d, m) = quantized(x.numpy(), most), blocks_of(weight)
    lanes = np.zeros((4, len(x), len(w)), np.float32)
    for b in range(q.shape[1]):
        both = scale[:, None, b] * d[None, :, b]
        lane = step((q[:, b] @ w[:, b].T).astype(np.float32), both, lanes[b % chains])
        if m is not None:
            lane = step(m[None, :, b], (scale[:, b] * q[:, b].sum(-1).astype(np.float32))[:, None], lane)
        lanes[b % chains] = lane
    sums = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
    return sums if weight.scale is None else sums * weight.scale.numpy()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 32, 1), (2, 96, 9), (4, 288, 33), (7, 160, 18)])
def test_native_has_the_bits_of_the_fixed_order(isa, format, rows, inputs, outputs):
    x, weight, _, _ = make(rows, inputs, outputs, format)
    step = rounded_twice if isa == "baseline" else fused
    if format in FLOATS:
        wanted, w = np.zeros((rows, outputs), np.float32), weight.unpack().numpy()
        for k in range(inputs):
            wanted = step(x.numpy()[:, None, k], w[None, :, k], wanted)
    else:
        wanted = model(x, weight, step)
    with use_backend("native"), native.instruction_set(isa):
        assert torch.equal(packed_linear(x, weight), torch.from_numpy(wanted))


@pytest.mark.parametrize("format", FORMATS)
def test_instruction_sets_with_fma_agree_to_the_bit(format):
    found = []
    for isa in {"avx2", "avx512"} & set(ISAS):
        with use_backend("native"), native.instruction_set(isa):
            sizes = (1, 576, 33), (2, 64, 5), (6, 160, 19), (257, 96, 64)
            found.append([packed_linear(*make(*size, format)[:3], activation="silu") for size in sizes])
    if len(found) < 2:
        pytest.skip("this CPU has not both")
    assert all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(*found, strict=True))


# Row i has the same bits whatever else runs.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("inputs, outputs", [(32, 5), (96, 40), (160, 16), (576, 70)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(isa, format, inputs, outputs):
    x, weight, bias, residual = make(103, inputs, outputs, format)
    options = {"activation": "gelu_tanh"}
    with native.instruction_set(isa), use_backend("native"):
        whole = packed_linear(x, weight, bias, residual=residual, **options)
        for first, count in [(0, 1), (102, 1), (50, 1), (3, 2), (9, 3), (20, 4), (30, 5), (41, 13), (1, 97)]:
            rows = slice(first, first + count)
            part = packed_linear(x[rows], weight, bias, residual=residual[rows], **options)
            assert torch.equal(part, whole[rows]), (first, count)


def on_threads(threads, *arguments):
    with with_threads(threads), use_backend("native"):
        return packed_linear(*arguments)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 200])
def test_a_row_has_the_same_bits_with_any_number_of_threads(format, rows):
    x, weight, bias, _ = make(rows, 288, 1000, format)
    whole = on_threads(1, x, weight, bias)
    for threads in (2, 3):
        assert torch.equal(on_threads(threads, x, weight, bias), whole)


def test_the_triton_tiles_are_the_same_for_every_batch():
    pytest.importorskip("triton")
    x, weight, bias, _ = make(70, 64, 9)
    with use_backend("triton"):
        whole = packed_linear(x, weight, bias)
        assert torch.equal(packed_linear(x[33:34], weight, bias), whole[33:34])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [3, 30])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_in_one_row_leaves_the_others_alone(backend, format, rows, bad):
    x, weight, bias, _ = make(rows, 96, 21, format)
    with use_backend(backend):
        wanted = packed_linear(x, weight, bias)
        x[1, 40] = bad
        came = packed_linear(x, weight, bias)
    others = torch.arange(rows) != 1
    assert torch.equal(came[others], wanted[others]) or backend == "reference"
    assert torch.allclose(came[others], wanted[others], rtol=1e-5, atol=1e-5)
    if format in FLOATS:
        assert not came[1].isfinite().any()
    else:  # a weight may be zero, which makes NaN of infinity
        assert not came[1].isfinite().all()
        assert came[1].isnan().all() or backend != "native"


@pytest.mark.parametrize("format", ["int8", *GGUF])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-33, 1e30])
def test_blocks_of_any_size_are_quantized(format, size):
    x, weight, _, _ = make(2, 64, 21, format)
    x[:, :32] *= size
    came, wanted = packed_linear(x, weight), seen(x, weight).double() @ weight.unpack().double().T
    assert torch.allclose(came.double(), wanted, rtol=1e-3, atol=1e-3 * max(size, 1.0))
    if size == 0.0:
        assert torch.equal(packed_linear(torch.zeros(2, 64), weight), torch.zeros(2, 21))


# Memory and shapes.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 32, 2), (3, 96, 5), (6, 160, 18), (29, 32, 35)])
def test_native_writes_nothing_outside(isa, format, rows, inputs, outputs):
    x, weight, bias, residual = make(rows, inputs, outputs, format)
    with native.instruction_set(isa), use_backend("native"), fenced((rows, outputs), torch.float32) as y:
        torch.ops.fastgen_native.packed_linear(
            y, x, weight.data, weight.scale, NUMBER[format], bias, 1, residual
        )
        assert torch.equal(y, packed_linear(x, weight, bias, activation="relu", residual=residual))


@pytest.fixture
def guarded():
    """A copy of a tensor whose last byte is followed by memory that may not be touched, read-only itself."""
    libc, kept = ctypes.CDLL(None, use_errno=True), []

    def place(tensor):
        size = tensor.numel() * tensor.element_size()
        pages = -(-size // mmap.PAGESIZE) + 1
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = (pages - 1) * mmap.PAGESIZE
        found = whole[start - size : start].view(tensor.dtype).view(tensor.shape)
        found.copy_(tensor)
        address = ctypes.c_void_p(whole.data_ptr())
        assert libc.mprotect(address, ctypes.c_size_t(start), mmap.PROT_READ) == 0
        after = ctypes.c_void_p(whole.data_ptr() + start)
        assert libc.mprotect(after, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        kept.append((memory, whole))
        return found

    yield place
    for memory, whole in kept:
        libc.mprotect(ctypes.c_void_p(whole.data_ptr()), ctypes.c_size_t(len(memory)), mmap.PROT_WRITE)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 32, 3), (1, 64, 4), (2, 96, 16), (9, 128, 17), (9, 160, 33)]
)
def test_read_only_memory_is_not_read_past_its_end(guarded, isa, format, rows, inputs, outputs):
    x, weight, bias, residual = make(rows, inputs, outputs, format)
    scale = None if weight.scale is None else guarded(weight.scale)
    mapped = PackedWeight(guarded(weight.data), format, weight.shape, scale)
    with native.instruction_set(isa), use_backend("native"):
        wanted = packed_linear(x, weight, bias, residual=residual)
        came = packed_linear(guarded(x), mapped, guarded(bias), residual=guarded(residual))
    assert torch.equal(came, wanted)


def test_a_file_is_mapped_at_any_address(tmp_path):
    x, weight, bias, _ = make(5, 64, 21)
    (tmp_path / "weights").write_bytes(b"?" * 13 + weight.data.numpy().tobytes())
    with open(tmp_path / "weights", "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = torch.frombuffer(memory, dtype=torch.uint8, offset=13)
    mapped = PackedWeight(data, "q4_1", (21, 64))
    assert torch.equal(packed_linear(x, mapped, bias), packed_linear(x, weight, bias))


def test_more_than_2_to_the_31_bytes_of_weights():
    inputs, outputs = 2**15, 2**16 + 3
    data = torch.from_numpy(np.zeros((2**12 + 1, inputs // 4, 16, 4), np.int8))  # zeros that take no memory
    data[-1, -1, (outputs - 1) % 16, -1], scale = 3, torch.ones(outputs)
    x = torch.zeros(1, inputs)
    x[0, -1] = 2.0
    y = packed_linear(x, PackedWeight(data, "int8", (outputs, inputs), scale))
    assert abs(y[0, -1] - 6.0) < 1e-6 and not y[0, :-1].any()


@pytest.mark.parametrize("backend", HERE)
def test_any_layout_and_number_of_dimensions(backend):
    x, weight, bias, residual = make(6, 64, 4)
    with use_backend(backend):
        wanted = packed_linear(x, weight, bias, residual=residual)
        strided = packed_linear(x.T.contiguous().T, weight, bias, residual=residual.T.contiguous().T)
        assert torch.equal(strided, wanted)
        deep = packed_linear(x.view(3, 1, 2, 64), weight, bias, residual=residual.view(3, 1, 2, 4))
        assert torch.equal(deep, wanted.view(3, 1, 2, 4))
        assert packed_linear(x[0], weight, bias).shape == (4,)
        assert packed_linear(x.new_empty(2, 0, 64), weight).shape == (2, 0, 4)
        expanded = packed_linear(x[:1].expand(5, 64), weight, bias)
        assert torch.allclose(expanded, packed_linear(x[:1], weight, bias).expand(5, 4))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("format", FORMATS)
def test_sizes_of_zero(backend, format):
    bias = torch.arange(4.0)
    with use_backend(backend):
        no_inputs = PackedWeight.pack(torch.empty(4, 0), format)
        assert torch.equal(packed_linear(torch.empty(3, 0), no_inputs, bias), bias.expand(3, 4))
        no_outputs = PackedWeight.pack(torch.empty(0, 32), format)
        assert packed_linear(torch.ones(3, 32), no_outputs).shape == (3, 0)
        assert no_outputs.unpack().shape == (0, 32) and no_inputs.unpack().shape == (4, 0)


BAD = [
    ({"x": [1.0]}, TypeError, "x is list, wanted a dense float32"),
    ({"x": torch.ones(3, 32).half()}, TypeError, "x is torch.float16, wanted"),
    ({"x": torch.ones(3, 33)}, ValueError, "x has shape (3, 33), wanted (..., 32) for this weight"),
    ({"x": torch.tensor(1.0)}, ValueError, "x has shape (), wanted (..., 32)"),
    ({"weight": torch.ones(4, 32)}, TypeError, "weight is torch.float32, wanted a PackedWeight"),
    ({"bias": torch.ones(5)}, ValueError, "bias has shape (5,), wanted (4,)"),
    ({"bias": 0.5}, TypeError, "bias is float"),
    ({"residual": torch.ones(3, 5)}, ValueError, "residual has shape (3, 5), wanted (3, 4)"),
    ({"residual": torch.ones(3, 4).double()}, TypeError, "residual is torch.float64, wanted a dense torch.f"),
    ({"activation": "swish"}, ValueError, "activation is 'swish', wanted one of none, relu"),
    ({"x": torch.ones(3, 32, device="meta")}, ValueError, "weight is on cpu, wanted meta as x"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for *_, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    arguments = {"x": torch.ones(3, 32), "weight": make(1, 32, 4)[1], **changes}
    positional = [arguments.pop("x"), arguments.pop("weight")]
    with pytest.raises(error) as caught:
        packed_linear(*positional, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(3, 5)}, "bad weight"),
        ({0: torch.zeros(2, 4)}, "bad y"),
        ({0: torch.zeros(3, 4).double()}, "bad y"),
        ({1: torch.zeros(3, 64)}, "bad weight"),
        ({1: torch.zeros(32, 3).T}, "bad x"),
        ({1: torch.zeros(3, 30)}, "bad x"),
        ({2: torch.zeros(79, dtype=torch.uint8)}, "bad weight"),
        ({2: torch.zeros(80, dtype=torch.int8)}, "bad weight"),
        ({3: torch.zeros(4)}, "bad scale"),
        ({4: 6}, "bad format"),
        ({4: 2}, "bad weight"),
        ({5: torch.zeros(3)}, "bad bias"),
        ({6: 10}, "bad activation"),
        ({7: torch.zeros(3, 4).double()}, "bad residual"),
    ],
)
def test_the_binding_guards_the_memory(change, message):
    x, weight, bias, residual = make(3, 32, 4)
    arguments = [torch.zeros(3, 4), x, weight.data, None, NUMBER["q4_1"], bias, 0, residual]
    torch.ops.fastgen_native.packed_linear(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.packed_linear(*arguments)


# Gradients: of x, bias and residual; the generic tests differentiate twice.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("format", FORMATS)
def test_gradients_are_those_of_the_unpacked_weight(backend, format):
    x, weight, bias, residual = make(3, 64, 5, format)
    found = []
    for run in (
        lambda x, b, r: packed_linear(x, weight, b, activation="silu", residual=r),
        lambda x, b, r: F.silu(F.linear(x + (seen(x.detach(), weight) - x.detach()), weight.unpack(), b)) + r,
    ):
        leaves = [t.clone().requires_grad_() for t in (x, bias, residual)]
        with use_backend(backend):
            run(*leaves).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*found, strict=True))
