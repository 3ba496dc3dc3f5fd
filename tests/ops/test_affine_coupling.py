"""The op affine_coupling: its values, log-determinants and gradients, its bits, and what it refuses."""

import math
from contextlib import ExitStack

import pytest
import torch
from affine_coupling_inputs import FLOATS, HERE, ISAS, LAYOUTS, SHAPES, largest, make, normal, options_of

from fastgen import native, use_backend
from fastgen.ops import affine_coupling
from fastgen.reference.affine_coupling import SCALE_MAPS
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import FLOAT64, INVERSE


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_values_and_log_determinants_are_those_of_the_jacobian(scale_map, inverse, backend):
    x, params = make((1, 7))
    run = {**options_of(scale_map), "inverse": inverse}
    with use_backend(backend):
        _, log_det = affine_coupling(x, params, **run)
        jacobian = torch.autograd.functional.jacobian(lambda x: affine_coupling(x, params, **run)[0], x)
    assert torch.allclose(log_det[0], torch.linalg.slogdet(jacobian[0, :, 0]).logabsdet, atol=1e-12)


def run_on(backend, x, params, run):
    """y, log_det, and the gradients of both arguments for gradients that differ everywhere."""
    x, params = x.clone().requires_grad_(), params.clone().requires_grad_()
    with use_backend(backend):
        y, log_det = affine_coupling(x, params, **run)
        grads = torch.autograd.grad(
            [y, log_det], [x, params], [torch.cos(x.detach()), 1 + log_det.detach() / 9]
        )
    return y.detach(), log_det.detach(), *grads


def check_against_the_reference(backend, dtype, shape, scale_map, inverse):
    for layout, first in LAYOUTS:
        for passed, masked in ((0, False), (0, True), (1, False), (-1, False)):
            if abs(passed) >= shape[1]:
                continue
            mask = normal(*shape[1:], seed=7) > 0.4 if masked else None
            run = {**options_of(scale_map), "layout": layout, "first": first, "mask": mask}
            run |= {"passed": passed, "inverse": inverse, "clamp": 1.7}
            x, params = make(shape, dtype, passed)
            wanted = run_on("reference", x.double(), params.double(), run)
            for came, exact in zip(run_on(backend, x, params, run), wanted, strict=True):
                # In float32 a few roundings; sums over a row add up as many.
                limit = FLOAT64["affine_coupling"][dtype]
                assert came.dtype == dtype and largest(came.double(), exact) < limit


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_native_agrees_with_the_reference_in_every_form(scale_map, inverse, dtype, isa):
    with native.instruction_set(isa):
        for shape in SHAPES:
            check_against_the_reference("native", dtype, shape, scale_map, inverse)


@pytest.mark.parametrize("backend", [name for name in HERE if name not in ("reference", "native")])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_other_implementations_agree_with_the_reference(scale_map, dtype, backend):
    check_against_the_reference(backend, dtype, (3, 6), scale_map, False)
    check_against_the_reference(backend, dtype, (2, 3, 2, 3), scale_map, True)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("inverse", [False, True])
def test_bfloat16_is_computed_in_float32_and_rounded_once(inverse, backend):
    x, params = make((4, 37), torch.bfloat16)
    run = {"scale_map": "tanh", "inverse": inverse}
    wide = run_on(backend, x.float(), params.float(), run)
    for came, exact in zip(run_on(backend, x, params, run)[:2], wide, strict=False):
        assert came.dtype == torch.bfloat16
        assert (
            (came.float() - exact).abs() <= exact.abs() * 2.0**-8 * (2 if backend == "triton" else 1)
        ).all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("dtype, limit", INVERSE["affine_coupling"].items())
def test_the_inverse_of_the_forward_pass(dtype, limit, scale_map, backend):
    x, params = make((5, 19), dtype)
    with use_backend(backend):
        y, log_det = affine_coupling(x, params, **options_of(scale_map))
        back, minus = affine_coupling(y, params, **options_of(scale_map), inverse=True)
    assert largest(back.double(), x.double()) < limit and torch.equal(minus, -log_det)


# Numbers at the edge of what there is.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype, far", [(torch.float32, 100.0), (torch.float64, 800.0)])
def test_a_scale_beyond_the_largest_number_is_infinite_and_its_logarithm_is_not(dtype, far, backend):
    x, params = torch.tensor([[2.0, 3.0]], dtype=dtype), torch.tensor([[0.0, 0, far, -far]], dtype=dtype)
    with use_backend(backend):
        y, log_det = affine_coupling(x, params, scale_map="exp")
        back, minus = affine_coupling(x, params, scale_map="exp", inverse=True)
    assert y[0, 0] == math.inf and 0 <= y[0, 1] < 1e-40 and log_det == 0 and minus == 0
    assert 0 <= back[0, 0] < 1e-40 and back[0, 1] == math.inf


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale_map, shift", [("sigmoid", 2.0), ("softplus", 0.0)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_logarithm_outlives_a_scale_that_is_0(dtype, scale_map, shift, backend):
    x = torch.ones(1, 1, dtype=dtype)
    params = torch.tensor([[0.0, -1000.0]], dtype=dtype)
    y, log_det, _, grad = run_on(backend, x, params, {"scale_map": scale_map})
    assert y == 0 and log_det == -1000 + shift and grad.isfinite().all()
    back, minus, *_ = run_on(backend, x, params, {"scale_map": scale_map, "inverse": True})
    assert back == math.inf and minus == 1000 - shift


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_stay_in_their_element(value, scale_map, backend):
    x, params = make((3, 20), torch.float32)
    with use_backend(backend):
        plain, plain_log = affine_coupling(x, params, scale_map=scale_map)
        x[1, 4] = params[2, 5] = value
        y, log_det = affine_coupling(x, params, scale_map=scale_map)
    assert y[1, 4].isnan() == math.isnan(value) and not y[1, 4].isfinite() and not y[2, 5].isfinite()
    changed = torch.zeros(3, 20, dtype=torch.bool)
    changed[1, 4] = changed[2, 5] = True
    assert torch.equal(y[~changed], plain[~changed]) and torch.equal(log_det, plain_log)


@pytest.mark.parametrize("backend", HERE)
def test_what_is_masked_plays_no_part(backend):
    x, params = make((3, 21), torch.float32)
    mask = torch.arange(21) % 3 == 0
    run = {"scale_map": "exp", "mask": mask}
    y, log_det, grad_x, grad_params = run_on(backend, x, params, run)
    broken = params.clone()
    broken[:, :21][:, mask] = math.nan
    broken[:, 21:][:, mask] = math.inf
    again = run_on(backend, x, broken, run)
    for a, b in zip((y, log_det, grad_x, grad_params), again, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(y[:, mask], x[:, mask]) and torch.equal(grad_x[:, mask], torch.cos(x)[:, mask])
    assert not grad_params.view(3, 2, 21)[..., mask].any()


def test_a_mask_of_an_image_is_broadcast():
    x, params = make((2, 3, 4, 4))
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    for mask in (board, board[None], torch.tensor([True, False, True])[:, None, None]):
        y, log_det = affine_coupling(x, params, scale_map="exp", mask=mask)
        moved = ~mask.expand(3, 4, 4)
        assert torch.equal(y[:, ~moved], x[:, ~moved]) and (y != x)[:, moved].all()
        assert torch.allclose(log_det, (params[:, 3:] * moved).flatten(1).sum(1))


# Bits and memory.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(67, 5), (67, 130), (9, 3, 10, 10)])
def test_a_rows_bits_depend_on_that_row_alone(shape, isa):
    x, params = make(shape, torch.float32)
    run = {"scale_map": "tanh"}
    with native.instruction_set(isa):
        with with_threads(1):
            whole = run_on("native", x, params, run)
            parts = [run_on("native", x[i : i + 4], params[i : i + 4], run) for i in range(0, len(x), 4)]
        for a, b in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(a, torch.cat(b))
        large = [t.repeat(40, *[1] * (t.dim() - 1)) for t in (x, params)]
        for threads in (2, 3):
            with with_threads(threads):
                found = run_on("native", *large, run)
            for a, b in zip(whole, found, strict=True):
                assert torch.equal(a.repeat(40, *[1] * (a.dim() - 1)), b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
@pytest.mark.parametrize("row, layout", [((96,), "halves"), ((90,), "halves"), ((16, 6), "interleaved")])
def test_results_too_large_for_the_caches_have_the_bits_of_small_ones(row, layout, dtype, inverse, isa):
    """Whether or not every vector of them lies where it may be stored past the caches."""
    rows = 2**23 // (math.prod(row) * dtype.itemsize) + 999  # what is read and written is over 32 MiB
    few = make((111, *row), dtype)
    x, params = (t.repeat(rows // 111 + 1, *[1] * len(row))[:rows] for t in few)
    run = {"scale_map": "tanh", "layout": layout, "inverse": inverse}
    with native.instruction_set(isa), use_backend("native"):
        for large, small in zip(affine_coupling(x, params, **run), affine_coupling(*few, **run), strict=True):
            assert torch.equal(large, small.repeat(rows // 111 + 1, *[1] * (small.dim() - 1))[:rows])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_writes_every_element_and_nothing_else(shape, layout, dtype, isa):
    x, params = make(shape, dtype)
    mask, grad = torch.zeros(shape[1:], dtype=torch.bool), torch.ones(shape[0], dtype=dtype)
    run = math.prod(shape[1:]) if layout == "halves" else math.prod(shape[2:])
    with native.instruction_set(isa), ExitStack() as stack:
        inputs = [stack.enter_context(fenced(t.shape, t.dtype)).copy_(t) for t in (x, params, mask)]
        tensors = (x, x[:, 0].flatten(1)[:, 0] if x.dim() > 2 else x[:, 0], x, params)
        y, log_det, grad_x, grad_params = (stack.enter_context(fenced(t.shape, dtype)) for t in tensors)
        fixed = (0, run, SCALE_MAPS.index("tanh"), True, 2.0, 0.0, False)
        torch.ops.fastgen_native.affine_coupling(y, log_det, *inputs, *fixed)
        torch.ops.fastgen_native.affine_coupling_backward(grad_x, grad_params, x, grad, *inputs, *fixed)
        assert all(bool(t.isfinite().all()) for t in (y, log_det, grad_x, grad_params))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("shape", [(0, 4), (3, 4, 0), (0, 2, 3, 3)])
def test_nothing_comes_of_nothing(shape, backend):
    x, params = (t.requires_grad_() for t in make(shape))
    with use_backend(backend):
        y, log_det = affine_coupling(x, params, scale_map="exp", passed=0)
        (y.sum() + log_det.sum()).backward()
    assert y.shape == shape and torch.equal(log_det.detach(), torch.zeros(shape[0], dtype=torch.float64))
    assert x.grad.shape == shape


def test_memory_in_any_order_and_expanded():
    x, params = make((6, 8))
    wanted = affine_coupling(x, params, scale_map="exp")
    came = affine_coupling(x.t().contiguous().t(), params.repeat(1, 2)[:, :16], scale_map="exp")
    assert all(torch.equal(a, b) for a, b in zip(came, wanted, strict=True))
    one = affine_coupling(x[:1].expand(3, 8), params[:1].expand(3, 16), scale_map="exp")
    assert torch.equal(one[0], wanted[0][:1].expand(3, 8))
    image, more = make((2, 3, 4, 4))
    last = affine_coupling(image.to(memory_format=torch.channels_last), more, scale_map="exp")
    assert torch.equal(last[0], affine_coupling(image, more, scale_map="exp")[0])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("passed", [0, 2, -3])
def test_in_place(passed, backend):
    x, params = make((4, 9), torch.float32, passed)
    with use_backend(backend):
        wanted = affine_coupling(x, params, scale_map="tanh", passed=passed)
        kept = x.clone()
        y, log_det = affine_coupling(kept, params, scale_map="tanh", passed=passed, inplace=True)
    assert (
        y.data_ptr() == kept.data_ptr() and torch.equal(kept, wanted[0]) and torch.equal(log_det, wanted[1])
    )
    with torch.no_grad():
        affine_coupling(kept, params.requires_grad_(), scale_map="tanh", passed=passed, inplace=True)


def test_in_place_is_refused_where_gradients_are_wanted():
    x, params = make((4, 6))
    for a, b in ((x.clone().requires_grad_(), params), (x, params.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match="inplace is True and gradients are wanted"):
            affine_coupling(a, b, scale_map="exp", inplace=True)
    with pytest.raises(ValueError, match=r"x has strides \(1, 4\), wanted a contiguous tensor"):
        affine_coupling(normal(6, 4).t(), params, scale_map="exp", inplace=True)


def test_autograd_sees_that_x_was_written():
    x, params = make((4, 6))
    leaf = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    product = leaf * x
    affine_coupling(x, params, scale_map="exp", inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


X, PARAMS = make((2, 4))
BAD = [
    ({"x": "x"}, TypeError, "x is str, wanted a dense tensor"),
    ({"x": X.to_sparse()}, TypeError, "x is a torch.sparse_coo tensor"),
    ({"x": X.half(), "params": PARAMS.half()}, TypeError, "x is torch.float16, wanted float32"),
    ({"params": PARAMS.float()}, TypeError, "params is torch.float32, wanted torch.float64 as x"),
    ({"x": X[0]}, ValueError, r"x has shape \(4,\), wanted \(N, C, ...\)"),
    ({"params": PARAMS[:, :7]}, ValueError, r"params has shape \(2, 7\), wanted \(2, 8\)"),
    ({"params": PARAMS.to("meta")}, ValueError, "params is on meta, wanted cpu as x"),
    ({"scale_map": "relu"}, ValueError, "scale_map is 'relu', wanted one of exp, tanh"),
    ({"layout": "thirds"}, ValueError, "layout is 'thirds', wanted one of halves, interleaved"),
    ({"first": "bias"}, ValueError, "first is 'bias', wanted one of shift, scale"),
    ({"inverse": 1}, TypeError, "inverse is 1, wanted True or False"),
    ({"clamp": 0.0, "scale_map": "tanh"}, ValueError, "clamp is 0.0, wanted a number > 0"),
    ({"clamp": math.nan, "scale_map": "tanh"}, ValueError, "clamp is nan, wanted a finite number"),
    ({"clamp": "2"}, TypeError, "clamp is str, wanted a number"),
    ({"min_scale": -1.0, "scale_map": "sigmoid"}, ValueError, "min_scale is -1.0, wanted a number >= 0"),
    ({"min_scale": 0.1}, ValueError, "min_scale is 0.1, wanted 0 with scale_map='exp'"),
    ({"passed": 4}, ValueError, "passed is 4, wanted an integer between -4 and 4"),
    ({"passed": True}, ValueError, "passed is True"),
    ({"passed": 1}, ValueError, r"params has shape \(2, 8\), wanted \(2, 6\)"),
    ({"mask": torch.ones(4)}, TypeError, "mask is torch.float32, wanted a dense bool tensor"),
    ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"mask has shape \(3,\), wanted one that"),
    ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"mask has shape \(2, 4\)"),
    (
        {"mask": torch.ones(4, dtype=torch.bool), "passed": 1, "params": PARAMS[:, :6]},
        ValueError,
        "mask came",
    ),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[message[:30] for _, _, message in BAD])
def test_bad_input_gets_a_sentence(change, error, message):
    arguments = {"x": X, "params": PARAMS, "scale_map": "exp"} | change
    with pytest.raises(error, match=message):
        affine_coupling(**arguments)
