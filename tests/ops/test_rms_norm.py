"""The op rms_norm, and what holds for layer_norm as well: values, gradients and bits."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import layer_norm, rms_norm
from fastgen.ops._registry import OPS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import ROUNDING, allowed

ISAS = native.usable_isas()
HERE = [name for name in OPS["rms_norm"].implementations if usable("rms_norm", name, "cpu")]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SIZES = [(1, 1), (3, 5), (70, 64), (2, 576), (9, 1000), (65, 33)]
EPS = 1e-5


def make(rows, width, dtype=torch.float32, seed=0):
    """x, weight, bias, residual."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (width,), (width,), (rows, width))
    x, weight, bias, residual = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return [t.to(dtype) for t in (x + 0.5, weight, bias, residual)]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class Rms:
    """rms_norm with the arguments of layer_norm."""

    backward = torch.ops.fastgen.rms_norm_backward

    @staticmethod
    def ours(x, weight, bias, residual=None):
        return rms_norm(x, weight, eps=EPS, residual=residual)

    @staticmethod
    def theirs(x, weight, bias):
        return F.rms_norm(x, weight.shape, weight, EPS)


class Layer:
    """layer_norm."""

    backward = torch.ops.fastgen.layer_norm_backward

    @staticmethod
    def ours(x, weight, bias, residual=None):
        return layer_norm(x, weight, bias, eps=EPS, residual=residual)

    @staticmethod
    def theirs(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias, EPS)


both = pytest.mark.parametrize("norm", [Rms, Layer])


@both
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, width", SIZES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_it_loses_no_more_than_twice_what_pytorch_loses(norm, backend, dtype, rows, width, with_residual):
    x, weight, bias, residual = make(rows, width, dtype)
    total = x
    with use_backend(backend):
        if with_residual:
            came, total = norm.ours(x, weight, bias, residual)
        else:
            came = norm.ours(x, weight, bias)
    if with_residual and not (backend == "triton" and dtype == torch.bfloat16):  # its interpreter cuts off
        assert torch.equal(total, x + residual)
    wanted = norm.theirs(total.double(), weight.double(), bias.double())
    theirs = norm.theirs(*(t.to(wide(dtype)) for t in (total, weight, bias)))
    assert came.dtype == dtype and came.shape == x.shape
    most = allowed(theirs, wanted, wide(dtype), losses=2, roundings=8)
    if dtype == torch.bfloat16:
        most += ROUNDING[dtype] * wanted.abs().max() * (2 if backend == "triton" else 1)
    assert (came.double() - wanted).abs().max() <= most


def fixed_order_sum(terms):
    """Along rows, in 64 chains and a tree, (rows, 1) in the dtype of the terms."""
    padded = np.pad(terms, ((0, 0), (0, -terms.shape[-1] % 64)))
    chains = np.zeros((len(terms), 64), terms.dtype)
    for k in range(0, padded.shape[-1], 64):
        chains = chains + padded[:, k : k + 64]
    while chains.shape[-1] > 1:
        half = chains.shape[-1] // 2
        chains = chains[:, :half] + chains[:, half:]
    return chains


@both
@pytest.mark.parametrize("rows, width", SIZES)
def test_native_without_fma_has_the_bits_of_the_fixed_order(norm, rows, width):
    x, weight, bias, _ = make(rows, width)
    count, row = np.float32(width), x.numpy()
    if norm is Layer:
        row = row - fixed_order_sum(row) / count
    inverse = 1 / np.sqrt(fixed_order_sum(row * row) / count + np.float32(EPS))
    wanted = torch.from_numpy(row * inverse) * weight + (bias if norm is Layer else 0)
    with use_backend("native"), native.instruction_set("baseline"):
        assert torch.equal(norm.ours(x, weight, bias), wanted)


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_with_fma_agree_to_the_bit(norm, dtype):
    if not {"avx2", "avx512"} <= set(ISAS):
        pytest.skip("this CPU has not both")
    for rows, width in SIZES:
        x, weight, bias, residual = make(rows, width, dtype)
        found = []
        for isa in ("avx2", "avx512"):
            with native.instruction_set(isa), use_backend("native"):
                forward = norm.ours(x, weight, bias, residual)
                found.append((*forward, *norm.backward(residual, x, weight.to(wide(dtype)), EPS)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@both
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(norm, isa, dtype):
    with native.instruction_set(isa), use_backend("native"):
        for width in (1, 7, 63, 64, 65, 200, 576):
            x, weight, bias, residual = make(67, width, dtype, seed=width)
            whole, total = norm.ours(x, weight, bias, residual)
            for rows in (slice(0, 1), slice(66, 67), slice(3, 20)):
                assert torch.equal(norm.ours(x[rows], weight, bias, residual[rows])[0], whole[rows])
            assert torch.equal(norm.ours(total, weight, bias), whole)


@both
@pytest.mark.parametrize("isa", ISAS)
def test_threads_change_no_bit_of_rows_and_gradients(norm, isa):
    x, weight, bias, grad = make(900, 300)
    found = []
    for threads in (1, 2, 3):
        with with_threads(threads), native.instruction_set(isa), use_backend("native"):
            found.append((norm.ours(x, weight, bias), *norm.backward(grad, x, weight, EPS)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@both
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows, width", [(1, 2), (67, 33), (3, 200)])
def test_gradients_are_those_of_float64(norm, backend, dtype, rows, width):
    given = make(rows, width, dtype)
    grad, _, _, grad_total = make(rows, width, dtype, seed=5)
    leaves = [t.clone().requires_grad_() for t in given]
    with use_backend(backend):
        torch.autograd.backward(norm.ours(*leaves), (grad, grad_total))
    exact = [t.double().requires_grad_() for t in given]
    total = exact[0] + exact[3]
    torch.autograd.backward(
        (norm.theirs(total, exact[1], exact[2]), total), (grad.double(), grad_total.double())
    )
    for ours, wanted in zip(leaves, exact, strict=True):
        if wanted.grad is None:
            assert norm is Rms and ours.grad is None
        else:
            scale = 1 + wanted.grad.abs().max()
            assert (ours.grad - wanted.grad).abs().max() <= 64 * ROUNDING[dtype] * scale


@both
@pytest.mark.parametrize("backend", HERE)
def test_gradients_of_bfloat16(norm, backend):
    given = make(20, 30, torch.bfloat16)
    leaves, exact = [t.clone().requires_grad_() for t in given], [t.double().requires_grad_() for t in given]
    with use_backend(backend):
        norm.ours(*leaves[:3]).float().sum().backward()
    norm.theirs(*exact[:3]).sum().backward()
    for ours, wanted in zip(leaves[: 2 + (norm is Layer)], exact, strict=False):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad - wanted.grad).abs().max() <= 0.02 * (1 + wanted.grad.abs().max())


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 40])
def test_native_writes_all_and_nothing_outside(norm, dtype, width):
    x, weight, bias, residual = make(5, width, dtype)
    places = [t.to(wide(dtype)) for t in ((weight, bias) if norm is Layer else (weight,))]
    run = getattr(torch.ops.fastgen_native, "layer_norm" if norm is Layer else "rms_norm")
    for isa in ISAS:
        with fenced((5, width), dtype) as y, fenced((5, width), dtype) as total:
            with native.instruction_set(isa):
                run(y, total, x, *places, EPS, residual)
            assert torch.isfinite(y).all() and torch.equal(total, x + residual)


@both
@pytest.mark.parametrize("backend", HERE)
def test_layouts_and_sizes_of_zero(norm, backend):
    x, weight, bias, residual = make(6, 10)
    with use_backend(backend):
        wanted, total = norm.ours(x, weight, bias, residual)
        strided = torch.stack([x, x], -1)[..., 0]
        assert torch.equal(norm.ours(strided, weight, bias, residual)[0], wanted)
        assert torch.equal(norm.ours(x.T.contiguous().T, weight, bias, residual)[1], total)
        cube = norm.ours(x.view(2, 3, 10), weight, bias, residual.view(2, 3, 10))
        assert torch.equal(cube[0], wanted.view(2, 3, 10)) and torch.equal(cube[1], total.view(2, 3, 10))
        row = norm.ours(x[:1].expand(6, 10), weight[:1].expand(10), bias)
        assert torch.equal(row, norm.ours(x[:1], weight[:1].repeat(10), bias).expand(6, 10))
        assert norm.ours(x[0], weight, bias).shape == (10,)
        assert norm.ours(x[:0], weight, bias).shape == (0, 10)
        assert norm.ours(x[:, :0], weight[:0], bias[:0]).shape == (6, 0)
        assert norm.ours(x.new_empty(2, 0, 10), weight, bias, x.new_empty(2, 0, 10))[1].shape == (2, 0, 10)
        empty = x[:0].clone().requires_grad_()
        leaf = weight.clone().requires_grad_()
        norm.ours(empty, leaf, bias).sum().backward()
        assert torch.equal(leaf.grad, torch.zeros_like(weight))


@both
@pytest.mark.parametrize("backend", HERE)
def test_a_row_that_is_not_finite_leaves_the_others(norm, backend):
    x, weight, bias, _ = make(4, 20)
    with use_backend(backend):
        clean = norm.ours(x, weight, bias)
        x[1, 3], x[2, 4] = float("nan"), float("inf")
        y = norm.ours(x, weight, bias)
    assert torch.equal(y[[0, 3]], clean[[0, 3]])
    assert y[1].isnan().all() and y[2, 4].isnan()


BAD = [
    ({"x": [1.0]}, TypeError, "x is list, wanted a dense float32"),
    ({"x": torch.ones(3, 5, dtype=torch.int64)}, TypeError, "x is torch.int64, wanted"),
    ({"x": torch.ones(3, 5).to_sparse()}, TypeError, "x is torch.sparse_coo of torch.float32"),
    ({"x": torch.tensor(1.0)}, ValueError, "x has shape (), wanted (..., C)"),
    ({"weight": torch.ones(4)}, ValueError, "weight has shape (4,), wanted (5,) as rows of x"),
    ({"weight": torch.ones(5).int()}, TypeError, "weight is torch.int32, wanted a dense floating tensor"),
    ({"weight": None}, TypeError, "weight is NoneType"),
    ({"weight": torch.ones(5, device="meta")}, ValueError, "weight is on meta, wanted cpu as x"),
    ({"residual": torch.ones(5)}, ValueError, "residual has shape (5,), wanted (3, 5) as x"),
    ({"residual": torch.ones(3, 5).double()}, TypeError, "residual is torch.float64, wanted a dense torch.f"),
    ({"eps": "small"}, TypeError, "eps is str, wanted a number"),
    ({"eps": -1.0}, ValueError, "eps is -1.0, wanted a finite number >= 0"),
    ({"eps": float("nan")}, ValueError, "eps is nan, wanted a finite number >= 0"),
]


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_in_one_sentence(norm, changes, error, message):
    with pytest.raises(error) as caught:
        norm(**{"x": torch.ones(3, 5), "weight": torch.ones(5), "eps": EPS} | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, torch.zeros(3, 4), "bad y"),
        (1, torch.zeros(3, 5).double(), "bad sum"),
        (2, torch.zeros(5, 3).T, "bad x"),
        (2, torch.zeros(3, 5).half(), "bad x"),
        (3, torch.zeros(4), "bad weight"),
        (5, torch.zeros(2, 5), "bad residual"),
    ],
)
def test_the_binding_guards_the_memory(index, value, message):
    arguments = [torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(5), EPS]
    arguments.append(torch.zeros(3, 5))
    torch.ops.fastgen_native.rms_norm(*arguments)
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.rms_norm(*arguments)
