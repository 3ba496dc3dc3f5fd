"""The op linear: its values and gradients, its bits, and what it refuses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.nn import Linear
from fastgen.ops import linear
from fastgen.ops._registry import OPS
from fastgen.reference.linear import ACTIVATIONS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import ROUNDING, allowed

ISAS = native.usable_isas()
HERE = [name for name in OPS["linear"].implementations if usable("linear", name, "cpu")]
FORMATS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float64, torch.float64),
]


def make(rows, inputs, outputs, dtype=torch.float32, weights=None, seed=0):
    """x, weight, bias, residual."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    x, weight, bias, residual = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes)
    return x, weight.to(weights or dtype), bias, residual


def exact(x, weight, bias, activation="none", residual=None):
    """In float64, and what PyTorch gives in float32 (float64: the same again, with its rounding)."""
    y = ACTIVATIONS[activation](F.linear(x.double(), weight.double(), bias.double()))
    return y if residual is None else y + residual.double()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype, weights", FORMATS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 5, 3), (9, 64, 33), (40, 300, 70), (1, 784, 100)])
def test_it_loses_no_more_than_twice_what_pytorch_loses(backend, dtype, weights, rows, inputs, outputs):
    x, weight, bias, residual = make(rows, inputs, outputs, dtype, weights)
    with use_backend(backend):
        came = linear(x, weight, bias, residual=residual)
    assert came.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    theirs = F.linear(x.to(wide), weight.to(wide), bias.to(wide)) + residual.to(wide)
    if dtype == torch.float64:  # nothing is more exact here than a bound: rounding, times terms, times size
        wanted, most = theirs, 4 * ROUNDING[dtype] * inputs * 8
    else:
        wanted = exact(x, weight, bias, residual=residual)
        most = allowed(theirs, wanted, dtype, losses=2, roundings=2)
    assert (came.double() - wanted).abs().max() <= most


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_those_of_pytorch(backend, activation, dtype):
    z = torch.cat([torch.linspace(-30, 30, 601), torch.linspace(-0.01, 0.01, 101)]).to(dtype)[:, None]
    one = torch.ones(1, 1, dtype=dtype)
    with use_backend(backend):
        came = linear(z, one, activation=activation)
    wanted = ACTIVATIONS[activation](z.double())
    # gelu is z times a number near 0 on the left, which PyTorch finds as 1 + erf: its scale is that of z.
    scale = wanted.abs() + (z.double().abs() if activation.startswith("gelu") else 1e-3)
    lost = ((ACTIVATIONS[activation](z).double() - wanted).abs() / scale).max()
    assert ((came.double() - wanted).abs() / scale).max() <= 2 * lost + 8 * ROUNDING[dtype]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_residual_is_added_after_the_activation(backend, activation):
    x, weight, bias, residual = make(5, 7, 6)
    with use_backend(backend):
        plain = linear(x, weight, bias, activation=activation)
        assert torch.equal(
            linear(x, weight, bias, activation=activation, residual=residual), plain + residual
        )


# The contract of native: the same bits as this model, written from its definition.


def fused(a, b, c):
    """a * b + c with one rounding: exact products and 64 bits of sum leave no tie undecided here."""
    return (a.astype(np.longdouble) * b + c).astype(np.float32)


def rounded_twice(a, b, c):
    return a * b + c


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 1, 1), (2, 16, 5), (7, 50, 9), (1, 70, 33), (5, 35, 6)]
)
def test_native_has_the_bits_of_the_fixed_order(isa, rows, inputs, outputs):
    x, weight, bias, _ = make(rows, inputs, outputs)
    step = rounded_twice if isa == "baseline" else fused
    padding = ((0, 0), (0, -inputs % 16))
    left, right = np.pad(x.numpy(), padding)[:, None], np.pad(weight.numpy(), padding)[None]
    lanes = np.zeros((rows, outputs, 16), np.float32)
    for k in range(0, left.shape[-1], 16):
        lanes = step(left[..., k : k + 16], right[..., k : k + 16], lanes)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    with use_backend("native"), native.instruction_set(isa):
        assert torch.equal(linear(x, weight, bias), torch.from_numpy(lanes[..., 0]) + bias)


@pytest.mark.parametrize("dtype, weights", FORMATS)
def test_instruction_sets_with_fma_agree_to_the_bit(dtype, weights):
    found = []
    for isa in {"avx2", "avx512"} & set(ISAS):
        with use_backend("native"), native.instruction_set(isa):
            found.append(
                [
                    linear(*make(rows, inputs, outputs, dtype, weights)[:3])
                    for rows, inputs, outputs in ((1, 70, 33), (6, 33, 19), (257, 64, 64))
                ]
            )
    if len(found) < 2:
        pytest.skip("this CPU has not both")
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Row i has the same bits whatever else runs.


def on_threads(threads, *arguments, **options):
    with with_threads(threads), use_backend("native"):
        return linear(*arguments, **options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, weights", FORMATS)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(isa, dtype, weights):
    with native.instruction_set(isa), use_backend("native"):
        for inputs in range(1, 71):
            outputs = 1 + 37 * inputs % 70
            x, weight, bias, residual = make(9, inputs, outputs, dtype, weights, seed=inputs)
            whole = linear(x, weight, bias, activation="silu", residual=residual)
            for rows in (slice(0, 1), slice(8, 9), slice(2, 4), slice(3, 8)):
                part = linear(x[rows], weight, bias, activation="silu", residual=residual[rows])
                assert torch.equal(whole[rows], part), (inputs, outputs, rows)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inputs, outputs", [(70, 67), (256, 130), (1024, 40)])
def test_a_row_has_the_same_bits_with_any_number_of_threads(isa, inputs, outputs):
    x, weight, bias, _ = make(257, inputs, outputs)
    with native.instruction_set(isa):
        whole = on_threads(1, x, weight, bias)
        for threads in (2, 3):
            assert torch.equal(on_threads(threads, x, weight, bias), whole)
        for row in (0, 100, 256):
            assert torch.equal(on_threads(2, x[row], weight, bias), whole[row])


def test_the_triton_tiles_are_the_same_for_every_batch():
    pytest.importorskip("triton")
    x, weight, bias, _ = make(70, 45, 9)
    with use_backend("triton"):
        whole = linear(x, weight, bias)
        assert torch.equal(linear(x[33:34], weight, bias), whole[33:34])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_in_one_row_leaves_the_others_alone(backend, bad):
    x, weight, bias, _ = make(7, 33, 9)
    with use_backend(backend):
        wanted = linear(x, weight, bias)
        x[3, 20] = bad
        came = linear(x, weight, bias)
    others = torch.arange(7) != 3
    assert torch.equal(came[others], wanted[others]) and not came[3].isfinite().any()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_comes_out_of_every_activation(backend, activation):
    with use_backend(backend):
        y = linear(torch.tensor([[float("nan")], [0.0]]), torch.ones(1, 1), activation=activation)
    assert y[0].isnan() and y[1].isfinite()


# Memory and shapes.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, weights", [f for f in FORMATS if f[0] != torch.bfloat16])
@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 3, 2), (3, 17, 5), (6, 31, 18), (1, 16, 35), (5, 0, 3)]
)
def test_native_reads_and_writes_nothing_outside(isa, dtype, weights, rows, inputs, outputs):
    given = make(rows, inputs, outputs, dtype, weights)
    with native.instruction_set(isa), use_backend("native"), fenced((rows, outputs), dtype) as y:
        fences = [fenced(tuple(t.shape), t.dtype) for t in given]  # NaN on either side
        x, weight, bias, residual = (
            fence.__enter__().copy_(t) for fence, t in zip(fences, given, strict=True)
        )
        torch.ops.fastgen_native.linear(y, x, weight, bias, 1, residual)
        assert torch.equal(y, linear(*given[:3], activation="relu", residual=given[3]))
        for fence in fences:
            fence.__exit__(None, None, None)


@pytest.mark.parametrize("backend", HERE)
def test_any_layout_and_number_of_dimensions(backend):
    x, weight, bias, residual = make(6, 10, 4)
    with use_backend(backend):
        wanted = linear(x, weight, bias, residual=residual)
        strided = linear(
            x.T.contiguous().T, weight.T.contiguous().T, bias, residual=residual.T.contiguous().T
        )
        assert torch.equal(strided, wanted)
        deep = linear(x.view(3, 1, 2, 10), weight, bias, residual=residual.view(3, 1, 2, 4))
        assert torch.equal(deep, wanted.view(3, 1, 2, 4))
        assert (
            torch.equal(linear(x[0], weight, bias, residual=residual[0]), wanted[0]) or backend == "reference"
        )
        expanded = linear(x[:1].expand(5, 10), weight, bias[:1].expand(4))
        assert (
            torch.equal(expanded, linear(x[:1], weight, bias[:1].repeat(4)).expand(5, 4))
            or backend == "reference"
        )


@pytest.mark.parametrize("backend", HERE)
def test_sizes_of_zero(backend):
    x, weight, bias, _ = make(3, 5, 4)
    with use_backend(backend):
        assert linear(x[:0], weight, bias).shape == (0, 4)
        assert linear(x, weight[:0], bias[:0]).shape == (3, 0)
        assert linear(x.new_empty(2, 0, 5), weight).shape == (2, 0, 4)
        assert torch.equal(linear(x[:, :0], weight[:, :0], bias), bias.expand(3, 4))
        assert torch.equal(linear(x[:, :0], weight[:, :0]), torch.zeros(3, 4))


BAD = [
    ({"x": [1.0]}, TypeError, "x is list, wanted a dense float32"),
    ({"x": torch.ones(3, 5, dtype=torch.int64)}, TypeError, "x is torch.int64, wanted"),
    ({"x": torch.ones(3, 5).to_sparse()}, TypeError, "x is torch.sparse_coo of torch.float32"),
    ({"x": torch.ones(3, 6)}, ValueError, "x has shape (3, 6), wanted (..., 5) for this weight"),
    ({"x": torch.tensor(1.0)}, ValueError, "x has shape (), wanted (..., 5)"),
    ({"x": torch.ones(3, 5).double()}, TypeError, "weight is torch.float32, wanted a dense float64 tensor"),
    (
        {"weight": torch.ones(4, 5).double()},
        TypeError,
        "weight is torch.float64, wanted a dense float32 or bfl",
    ),
    ({"weight": torch.ones(5)}, ValueError, "weight has shape (5,), wanted (out, in)"),
    ({"weight": None}, TypeError, "weight is NoneType"),
    ({"bias": torch.ones(5)}, ValueError, "bias has shape (5,), wanted (4,)"),
    ({"bias": torch.ones(4, dtype=torch.int32)}, TypeError, "bias is torch.int32, wanted a dense floating"),
    ({"bias": 0.5}, TypeError, "bias is float"),
    ({"residual": torch.ones(3, 5)}, ValueError, "residual has shape (3, 5), wanted (3, 4)"),
    ({"residual": torch.ones(4)}, ValueError, "residual has shape (4,), wanted (3, 4)"),
    (
        {"residual": torch.ones(3, 4).double()},
        TypeError,
        "residual is torch.float64, wanted a dense torch.float32",
    ),
    ({"activation": "swish"}, ValueError, "activation is 'swish', wanted one of none, relu"),
    ({"activation": None}, ValueError, "activation is None"),
    ({"weight": torch.ones(4, 5, device="meta")}, ValueError, "weight is on meta, wanted cpu as x"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    arguments = {"x": torch.ones(3, 5), "weight": torch.ones(4, 5), **changes}
    positional = [arguments.pop("x"), arguments.pop("weight")]
    with pytest.raises(error) as caught:
        linear(*positional, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(3, 5)}, "bad y"),
        ({0: torch.zeros(3, 4, dtype=torch.float16)}, "bad y"),
        ({1: torch.zeros(3, 6)}, "bad x"),
        ({1: torch.zeros(5, 3).T}, "bad x"),
        ({2: torch.zeros(4, 5, dtype=torch.float16)}, "bad weight"),
        ({3: torch.zeros(3)}, "bad bias"),
        ({4: 10}, "bad activation"),
        ({4: -1}, "bad activation"),
        ({5: torch.zeros(3, 4).double()}, "bad residual"),
    ],
)
def test_the_binding_guards_the_memory(change, message):
    x, weight, bias, residual = make(3, 5, 4)
    arguments = [torch.zeros(3, 4), x, weight, bias, 0, residual]
    torch.ops.fastgen_native.linear(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.linear(*arguments)


# Gradients; those of the generic tests take one activation.


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias, with_residual", [(True, False), (True, True), (False, False)])
def test_gradients_of_every_activation(activation, with_bias, with_residual):
    x, weight, bias, residual = make(4, 5, 3, torch.float64)
    leaves = [x, weight] + [bias] * with_bias + [residual] * with_residual
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def run(x, weight, *rest):
        given = dict(zip(["bias"] * with_bias + ["residual"] * with_residual, rest, strict=True))
        return linear(x, weight, activation=activation, **given)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_at_zero_and_far_out_are_those_of_pytorch(activation):
    z = torch.tensor([[0.0], [-0.0], [50.0], [-50.0], [1e4], [-1e4]])
    found = []
    for run in (lambda x: linear(x, torch.ones(1, 1), activation=activation), ACTIVATIONS[activation]):
        leaf = z.clone().requires_grad_()
        run(leaf).sum().backward()
        found.append(leaf.grad)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype, weights", FORMATS)
def test_gradients_have_the_dtypes_of_what_they_belong_to(dtype, weights):
    x, weight, bias, residual = make(6, 20, 8, dtype, weights)
    found = []
    for wide in (None, torch.float64):
        leaves = [
            (t if wide is None else t.to(wide)).detach().requires_grad_() for t in (x, weight, bias, residual)
        ]
        y = linear(*leaves[:3], activation="gelu", residual=leaves[3])
        y.backward(torch.ones_like(y))
        found.append([leaf.grad for leaf in leaves])
    for leaf, grad, wanted in zip((x, weight, bias, residual), *found, strict=True):
        assert grad.dtype == leaf.dtype
        assert torch.allclose(grad.double(), wanted, rtol=4 * ROUNDING[grad.dtype], atol=1e-5)


def test_only_the_gradients_that_are_wanted_are_made():
    x, weight, bias, _ = make(3, 5, 4)
    x.requires_grad_()
    linear(x, weight, bias, activation="silu").sum().backward()
    assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize("backend", HERE)
def test_autocast_changes_neither_results_nor_gradients(backend):
    x, weight, bias, _ = make(3, 5, 4)
    found = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = linear(leaf, weight, bias, activation="silu")
            y.sum().backward()
        found.append((y, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][0].dtype == torch.float32


# The layer.


def test_the_layer_takes_the_parameters_of_pytorchs():
    theirs = torch.nn.Linear(7, 5)
    mine = Linear(7, 5)
    mine.load_state_dict(theirs.state_dict())
    x = make(4, 7, 5)[0]
    assert torch.allclose(mine(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert torch.allclose(mine(x, activation="tanh"), torch.tanh(theirs(x)), rtol=1e-5, atol=1e-6)
    assert isinstance(mine, torch.nn.Linear) and Linear(7, 5, bias=False)(x).shape == (4, 5)


def test_the_layer_learns_as_pytorchs():
    theirs, mine, x = torch.nn.Linear(7, 1), Linear(7, 1), make(32, 7, 1)[0]
    mine.load_state_dict(theirs.state_dict())
    for layer in (theirs, mine):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (layer(x)[:, 0] - x[:, 0]).square().mean().backward()
            optimizer.step()
    assert torch.allclose(mine.weight, theirs.weight, atol=1e-5)
