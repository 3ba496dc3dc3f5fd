"""The op invertible_linear: its values, log-determinants and gradients, its bits, and what it refuses."""

import math
from contextlib import ExitStack

import pytest
import torch

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import invertible_linear
from fastgen.ops._registry import OPS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import FLOAT64, INVERSE, LIBRARY

ISAS = native.usable_isas()
OP = OPS["invertible_linear"]
HERE = [name for name in OP.implementations if usable("invertible_linear", name, "cpu")]
FORMS = [((3, 5, 4, 3), 1), ((2, 13, 9, 9), 1), ((2, 4, 5, 17), -1), ((7, 6), 1), ((1, 64, 16, 17), 1)]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(shape, dim=1, dtype=torch.float64):
    """x, weight, bias; the weight is far from singular."""
    channels, wide = shape[dim], torch.float64 if dtype == torch.float64 else torch.float32
    rotation, _ = torch.linalg.qr(normal(channels, channels, seed=1))
    weight = rotation * torch.linspace(0.5, 2, channels, dtype=torch.float64)
    return normal(*shape, dtype=dtype), weight.to(wide), normal(channels, seed=2, dtype=wide)


def exact(x, weight, bias, dim):
    """By einsum in float64."""
    y = x.double().movedim(dim, -1) @ weight.double().T + bias.double()
    return y.movedim(-1, dim)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, limit", FLOAT64["invertible_linear"].items())
@pytest.mark.parametrize("shape, dim", FORMS)
def test_values(shape, dim, dtype, limit, isa, backend):
    x, weight, bias = make(shape, dim, dtype)
    with native.instruction_set(isa), use_backend(backend):
        y, log_det = invertible_linear(x, weight, bias, dim=dim)
    wanted = exact(x, weight, bias, dim)
    assert y.dtype == dtype and y.shape == x.shape
    limit = 8e-3 if backend == "triton" and dtype == torch.bfloat16 else limit  # its interpreter cuts off
    assert ((y.double() - wanted).abs() <= limit * (2 + wanted.abs())).all()
    pixels = math.prod(shape) // shape[0] // shape[dim]
    expected = pixels * torch.linalg.slogdet(weight.double()).logabsdet
    assert torch.allclose(log_det.double(), expected.expand(shape[0]), rtol=4 * limit)


@pytest.mark.parametrize("backend", HERE)
def test_the_log_determinant_is_that_of_the_jacobian_of_all_pixels(backend):
    x, weight, bias = make((1, 3, 2, 2))
    for inverse in (False, True):
        with use_backend(backend):
            _, log_det = invertible_linear(x, weight, bias, inverse=inverse)
            jacobian = torch.autograd.functional.jacobian(
                lambda x, inverse=inverse: invertible_linear(x, weight, bias, inverse=inverse)[0], x
            )
        assert torch.allclose(log_det[0], torch.linalg.slogdet(jacobian.view(12, 12)).logabsdet)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype, limit", INVERSE["invertible_linear"].items())
@pytest.mark.parametrize("shape, dim", FORMS[:4])
def test_there_and_back(shape, dim, dtype, limit, backend):
    x, weight, bias = make(shape, dim, dtype)
    with use_backend(backend):
        y, log_det = invertible_linear(x, weight, bias, dim=dim)
        back, minus = invertible_linear(y, weight, bias, dim=dim, inverse=True)
    assert (back - x).abs().max() < limit and torch.equal(minus, -log_det)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("shape, dim", FORMS[:4])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse, shape, dim, backend):
    leaves = [t.requires_grad_() for t in make(shape, dim)]
    with use_backend(backend):
        ours = invertible_linear(*leaves, dim=dim, inverse=inverse)
        theirs = plain(*leaves, dim, inverse)
        grads = torch.cos(theirs[0].detach()), torch.arange(1.0, 1 + shape[0], dtype=torch.float64)
        pairs = zip(*(torch.autograd.grad(outputs, leaves, grads) for outputs in (ours, theirs)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in pairs)


def plain(x, weight, bias, dim, inverse):
    """In PyTorch."""
    rows = x.movedim(dim, -1)
    y = (rows - bias) @ torch.linalg.inv(weight).T if inverse else rows @ weight.T + bias
    pixels = math.prod(rows.shape[1:-1])
    log_det = (-pixels if inverse else pixels) * torch.linalg.slogdet(weight).logabsdet
    return y.movedim(-1, dim), log_det.expand(len(x))


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("lu", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_agrees_with_normflows(inverse, lu, dtype, limit):
    mixing = pytest.importorskip("normflows.flows.mixing")
    torch.manual_seed(3)
    theirs, x = mixing.Invertible1x1Conv(6, use_lu=lu).to(dtype), normal(4, 6, 5, 3, dtype=dtype)
    weight = theirs._assemble_W() if lu else theirs.W
    wanted = theirs.forward(x) if inverse else theirs.inverse(x)
    came = invertible_linear(x, weight, inverse=inverse)
    for a, b in zip(came, wanted, strict=True):
        assert ((a - b).abs() <= limit * (1 + b.abs())).all()
    parameters = list(theirs.parameters())
    grads = [torch.autograd.grad(y.cos().sum() + d.sum(), parameters) for y, d in (came, wanted)]
    # normflows gives one log-determinant for all rows.
    log_grads = torch.autograd.grad(
        (theirs.forward(x) if inverse else theirs.inverse(x))[1], parameters, allow_unused=True
    )
    for a, b, once in zip(*grads, log_grads, strict=True):
        full = b + 3 * (torch.zeros_like(b) if once is None else once)
        assert ((a - full).abs() <= limit * 10 * (1 + full.abs())).all()


@pytest.mark.parametrize("dtype, limit", LIBRARY.items())
@pytest.mark.parametrize("inverse", [False, True])
def test_agrees_with_nflows(inverse, dtype, limit):
    conv = pytest.importorskip("nflows.transforms.conv")
    torch.manual_seed(3)
    theirs, x = conv.OneByOneConvolution(6, identity_init=False).to(dtype), normal(4, 6, 5, 3, dtype=dtype)
    torch.nn.init.normal_(theirs.bias)
    weight, order = theirs.weight(), theirs.permutation._permutation
    permuted = torch.zeros_like(weight).index_copy(1, order, weight)
    came = invertible_linear(x, permuted, theirs.bias, log_abs_det=theirs.logabsdet(), inverse=inverse)
    for a, b in zip(came, (theirs.inverse if inverse else theirs.forward)(x), strict=True):
        assert ((a - b).abs() <= limit * (1 + b.abs())).all()


# Bits and memory.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(9, 5, 4, 4), (33, 12, 9, 7), (5, 70, 12, 12), (300, 19)])
def test_a_pixels_bits_depend_on_that_pixel_alone(shape, dtype, isa):
    x, weight, bias = make(shape, 1, dtype)
    with native.instruction_set(isa), use_backend("native"):
        with with_threads(1):
            whole, _ = invertible_linear(x, weight, bias)
            parts = [invertible_linear(x[i : i + 2], weight, bias)[0] for i in range(0, len(x), 2)]
            assert torch.equal(whole, torch.cat(parts))
            last, _ = invertible_linear(x.movedim(1, -1).contiguous(), weight, bias, dim=-1)
            assert torch.equal(whole, last.movedim(-1, 1))
        times = 20, *[1] * (x.dim() - 1)
        with with_threads(3):
            assert torch.equal(whole.repeat(times), invertible_linear(x.repeat(times), weight, bias)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2, 1), (3, 5, 7), (2, 13, 100), (1, 37, 65)])
def test_native_writes_every_element_and_nothing_else(shape, dtype, isa):
    for channels_last in (False, True):
        form = (shape[0], shape[2], shape[1]) if channels_last else shape
        x, weight, bias = make(form, -1 if channels_last else 1, dtype)
        with native.instruction_set(isa), ExitStack() as stack:
            inputs = [stack.enter_context(fenced(t.shape, dtype)).copy_(t) for t in (x, weight, bias)]
            y = stack.enter_context(fenced(form, dtype))
            torch.ops.fastgen_native.invertible_linear(y, *inputs, channels_last)
            assert torch.allclose(y, exact(x, weight, bias, -1 if channels_last else 1).to(dtype), atol=1e-5)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 2, 2), (3, 4, 0, 5)])
def test_nothing_comes_of_nothing(shape, backend):
    x, weight, bias = make(shape)
    with use_backend(backend):
        y, log_det = invertible_linear(x, weight, bias)
    assert y.shape == shape and log_det.shape == shape[:1]
    assert shape[-1] != 5 or not log_det.any()


def test_memory_in_any_order_and_expanded():
    x, weight, bias = make((3, 5, 4, 4))
    wanted, _ = invertible_linear(x, weight, bias)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(invertible_linear(other, weight, bias)[0], wanted)
    assert torch.equal(invertible_linear(x, weight.t().contiguous().t(), bias)[0], wanted)
    one, _ = invertible_linear(x[:1].expand(3, 5, 4, 4), weight, bias)
    assert torch.equal(one, wanted[:1].expand(3, 5, 4, 4))
    last = x.to(memory_format=torch.channels_last)
    assert invertible_linear(last, weight)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", HERE)
def test_nan_stays_in_its_pixel(backend):
    x, weight, bias = make((2, 3, 4, 4), dtype=torch.float32)
    with use_backend(backend):
        wanted, _ = invertible_linear(x, weight, bias)
        x[1, 2, 3, 0] = math.nan
        y, _ = invertible_linear(x, weight, bias)
    assert y[1, :, 3, 0].isnan().all() and int((y != wanted).sum()) == 3


X, WEIGHT, BIAS = make((2, 3, 4, 4))
BAD = [
    ({"x": 3}, TypeError, "x is int, wanted a dense tensor"),
    ({"x": X.half()}, TypeError, "x is torch.float16, wanted float32"),
    ({"x": X[0, 0, 0]}, ValueError, r"x has shape \(4,\), wanted \(N, C, ...\)"),
    ({"weight": WEIGHT.float()}, TypeError, "weight is torch.float32, wanted torch.float64"),
    ({"weight": WEIGHT[:2]}, ValueError, r"weight has shape \(2, 3\), wanted \(C, C\)"),
    ({"weight": WEIGHT[0]}, ValueError, r"weight has shape \(3,\), wanted \(C, C\)"),
    ({"x": X[:, :2]}, ValueError, r"x has shape \(2, 2, 4, 4\), wanted \(N, 3, ...\) for a weight \(3, 3\)"),
    ({"x": X, "dim": -1}, ValueError, r"x has shape \(2, 3, 4, 4\), wanted \(N, ..., 3\) for a weight"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, wanted cpu as x"),
    (
        {"bias": BIAS[:2]},
        ValueError,
        r"bias is torch.float64 of shape \(2,\), wanted torch.float64 of \(3,\)",
    ),
    ({"dim": 2}, ValueError, "dim is 2, wanted 1 or -1"),
    ({"inverse": None}, TypeError, "inverse is None, wanted True or False"),
    ({"log_abs_det": "0"}, TypeError, "log_abs_det is str, wanted a number"),
    ({"log_abs_det": BIAS}, ValueError, r"log_abs_det is torch.float64 of shape \(3,\)"),
    ({"weight": torch.ones(3, 3, dtype=torch.float64)}, ValueError, "weight is singular"),
    ({"weight": torch.zeros(3, 3, dtype=torch.float64), "inverse": True}, ValueError, "weight is singular"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[message[:30] for _, _, message in BAD])
def test_bad_input_gets_a_sentence(change, error, message):
    arguments = {"x": X, "weight": WEIGHT, "bias": BIAS} | change
    with pytest.raises(error, match=message):
        invertible_linear(**arguments)
