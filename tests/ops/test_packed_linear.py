"""The op packed_linear: its values, its bits and its gradients."""

import numpy as np
import pytest
import torch
from packed_linear_inputs import FLOATS, FORMATS, GGUF, HERE, ISAS, exact, make, seen
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.ops import linear, packed_linear
from fastgen.reference.linear import ACTIVATIONS
from fastgen.testing import with_threads
from fastgen.tolerances import ROUNDING

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
