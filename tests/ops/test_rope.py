"""The op rope: values, gradients and bits."""

import pytest
import torch

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import rope
from fastgen.ops._registry import OPS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import ROUNDING

ISAS = native.usable_isas()
HERE = [name for name in OPS["rope"].implementations if usable("rope", name, "cpu")]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SHAPES = [(2, 3, 2, 2), (1, 5, 9, 64), (3, 4, 1, 6), (2, 2, 3, 40), (1, 3, 5, 128)]


def make(shape, dtype=torch.float32, seed=0):
    """x, cos, sin."""
    g = torch.Generator().manual_seed(seed)
    angle = 6.3 * torch.rand(shape[-3], shape[-1] // 2, generator=g, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    return x, angle.cos().to(wide), angle.sin().to(wide)


def turned(x, cos, sin, interleaved):
    """By complex multiplication, in float64."""
    half = x.shape[-1] // 2
    pairs = x.double().unflatten(-1, (half, 2) if interleaved else (2, half))
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    turn = torch.complex(cos.double(), sin.double())[:, None]
    out = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return (out if interleaved else out.transpose(-1, -2)).flatten(-2)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_are_turned_as_complex_numbers(backend, dtype, shape, interleaved):
    x, cos, sin = make(shape, dtype)
    with use_backend(backend):
        came = rope(x, cos, sin, interleaved=interleaved)
    wanted = turned(x, cos, sin, interleaved)
    assert came.dtype == dtype and came.shape == x.shape
    assert (came.double() - wanted).abs().max() <= 4 * ROUNDING[dtype] * x.abs().max()


@pytest.mark.parametrize("backend", HERE)
def test_scores_depend_on_the_distance_alone(backend):
    frequency = 100.0 ** -(torch.arange(8) / 8)
    angle = torch.arange(40)[:, None] * frequency
    row = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 40, 1, 16)
    with use_backend(backend):
        q, k = rope(row, angle.cos(), angle.sin())[:, :, 0]
    scores = q @ k.T
    for distance in (0, 1, 17):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_row_has_the_same_bits_in_any_company(isa, dtype, interleaved):
    x, cos, sin = make((3, 300, 3, 38), dtype)
    found = []
    with native.instruction_set(isa), use_backend("native"):
        for threads in (1, 2, 3):
            with with_threads(threads):
                found.append(rope(x, cos, sin, interleaved=interleaved))
        for t in (0, 7, 299):
            part = slice(t, t + 1)
            alone = rope(x[1:2, part], cos[part], sin[part], interleaved=interleaved)
            assert torch.equal(alone, found[0][1:2, part])
            one_head = rope(x[1:2, part, 1:2], cos[part], sin[part], interleaved=interleaved)
            assert torch.equal(one_head, found[0][1:2, part, 1:2])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_instruction_sets_with_fma_agree_to_the_bit(dtype, interleaved):
    if not {"avx2", "avx512"} <= set(ISAS):
        pytest.skip("this CPU has not both")
    for shape in SHAPES:
        found = []
        for isa in ("avx2", "avx512"):
            with native.instruction_set(isa), use_backend("native"):
                found.append(rope(*make(shape, dtype), interleaved=interleaved))
        assert torch.equal(*found)


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_bits_without_fma_are_those_of_the_reference(interleaved):
    for shape in SHAPES:
        with use_backend("reference"):
            wanted = rope(*make(shape), interleaved=interleaved)
        with use_backend("native"), native.instruction_set("baseline"):
            assert torch.equal(rope(*make(shape), interleaved=interleaved), wanted)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients(backend, interleaved):
    leaves = [t.requires_grad_() for t in make((2, 3, 2, 6), torch.float64)]

    def run(x, cos, sin):
        return rope(x, cos, sin, interleaved=interleaved)

    with use_backend(backend):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [2, 6, 38])
def test_native_writes_all_and_nothing_outside(isa, dtype, interleaved, size):
    x, cos, sin = make((2, 3, 3, size), dtype)
    with fenced(tuple(x.shape), dtype) as y:
        with native.instruction_set(isa):
            torch.ops.fastgen_native.rope(y, x, cos, sin, interleaved)
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("backend", HERE)
def test_layouts_and_sizes_of_zero(backend):
    x, cos, sin = make((2, 5, 3, 8))
    with use_backend(backend):
        wanted = rope(x, cos, sin)
        heads_first = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(rope(heads_first, cos.T.contiguous().T, sin), wanted)
        assert torch.equal(rope(x[0], cos, sin), wanted[0])
        assert torch.equal(rope(x.view(2, 1, 5, 3, 8), cos, sin)[:, 0], wanted)
        same = rope(x[:, :1].expand(2, 5, 3, 8), cos[:1].expand(5, 4), sin[:1].expand(5, 4))
        assert torch.equal(same, wanted[:, :1].expand(2, 5, 3, 8))
        assert rope(x[:0], cos, sin).shape == (0, 5, 3, 8)
        assert rope(x[:, :0], cos[:0], sin[:0]).shape == (2, 0, 3, 8)
        assert rope(x[:, :, :0], cos, sin).shape == (2, 5, 0, 8)
        assert rope(x[..., :0], cos[:, :0], sin[:, :0]).shape == (2, 5, 3, 0)


BAD = [
    ({"x": 1.0}, TypeError, "x is float, wanted a dense float32"),
    ({"x": torch.ones(5, 3, 8).half()}, TypeError, "x is torch.float16, wanted"),
    ({"x": torch.ones(5, 3, 7)}, ValueError, "x has shape (5, 3, 7), wanted (..., T, H, D) with D even"),
    ({"x": torch.ones(5, 8)}, ValueError, "x has shape (5, 8), wanted (..., T, H, D)"),
    ({"cos": torch.ones(5, 8)}, ValueError, "cos has shape (5, 8), wanted (5, 4): (T, D / 2) of this x"),
    ({"sin": torch.ones(4, 4)}, ValueError, "sin has shape (4, 4), wanted (5, 4)"),
    ({"sin": torch.ones(5, 4).int()}, TypeError, "sin is torch.int32, wanted a dense floating tensor"),
    ({"cos": torch.ones(5, 4, device="meta")}, ValueError, "cos is on meta, wanted cpu as x"),
    ({"interleaved": 1}, TypeError, "interleaved is 1, wanted True or False"),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    with pytest.raises(error) as caught:
        rope(**{"x": torch.ones(5, 3, 8), "cos": torch.ones(5, 4), "sin": torch.ones(5, 4)} | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "index, value, message",
    [
        (0, torch.zeros(1, 5, 3, 6), "bad y"),
        (1, torch.zeros(1, 5, 3, 7), "bad x"),
        (1, torch.zeros(3, 8), "bad x"),
        (2, torch.zeros(5, 3), "bad cos"),
        (3, torch.zeros(5, 4).double(), "bad sin"),
    ],
)
def test_the_binding_guards_the_memory(index, value, message):
    x, angles = torch.zeros(1, 5, 3, 8), torch.zeros(5, 4)
    arguments = [torch.zeros_like(x), x, angles, angles, False]
    torch.ops.fastgen_native.rope(*arguments)
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.rope(*arguments)
