"""rq_spline at its knots and bounds, at NaN and infinity, of nothing, and what it refuses."""

import pytest
import torch
from rq_spline_inputs import BACKENDS, TOLERANCE, agree, arguments, numbers

import fastgen
from fastgen.ops import rq_spline

# Edges.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bound", [1.0, 3.0, 32.0, 1000.0])
def test_at_and_beyond_the_bound(bound, inverse, dtype, backend):
    """nflows adds 1e-6 to its last knot, which from a bound of 32 on is nothing in float32."""
    x = torch.tensor([-bound, bound, -1.5 * bound, 1.5 * bound, -torch.inf, torch.inf], dtype=dtype)[:, None]
    params = numbers(1, 1, 23, dtype=dtype).expand(6, 1, 23)
    with fastgen.use_backend(backend):
        leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
        y, log_det = rq_spline(*leaves, bins=8, bound=bound, inverse=inverse)
        grad_x, grad_params = torch.autograd.grad([y, log_det], leaves, [torch.ones_like(y), log_det + 1])
    roundings = 16 * torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    assert torch.equal(y[2:], x[2:]) and (log_det[2:] == 0).all()
    assert ((y[:2] - x[:2]).abs() <= roundings * bound).all() and (y[:2].abs() <= bound).all()
    assert (log_det[:2].abs() <= 1e3 * roundings).all()
    assert torch.equal(grad_x[2:], torch.ones_like(x[2:])) and (grad_params[2:] == 0).all()
    assert grad_x.isfinite().all() and grad_params.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
def test_at_the_knots(inverse, dtype, backend):
    """With equal bins the knots are known: so are the values there, and the derivatives."""
    knots = torch.linspace(-2, 2, 9, dtype=dtype)[:, None]
    raw = torch.linspace(-1, 1, 7, dtype=dtype)
    params = torch.cat([torch.zeros(16, dtype=dtype), raw]).expand(9, 1, 23)
    with fastgen.use_backend(backend):
        y, log_det = rq_spline(knots, params, bins=8, bound=2.0, inverse=inverse)
    slope = torch.cat([torch.ones(1), 1e-3 + torch.nn.functional.softplus(raw), torch.ones(1)]).to(dtype)
    agree([y, log_det], [knots, -slope.log() if inverse else slope.log()], 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
def test_nan_stays_where_it_is(inverse, dtype, backend):
    x, params = arguments(20, 5, 6, dtype=dtype)
    options = {"bins": 6, "bound": 2.0, "inverse": inverse, "sum_log_det": False}
    wrong = torch.zeros(20, 5, dtype=torch.bool)
    wrong[3, 2] = wrong[11, 0] = True
    with fastgen.use_backend(backend):
        right = rq_spline(x, params, **options)
        found = rq_spline(x.masked_fill(wrong, torch.nan), params, **options)
        for a, b in zip(found, right, strict=True):
            assert a[wrong].isnan().all() and torch.equal(a[~wrong], b[~wrong])
        inside = wrong & (x.abs() <= 2)
        assert inside.any()
        found = rq_spline(x, params.masked_fill(wrong[..., None], torch.nan), **options)
        for a, b in zip(found, right, strict=True):
            assert a[inside].isnan().all() and torch.equal(a[~wrong], b[~wrong])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("of_wrong", [0.0, 1.0])
def test_gradients_at_nan_are_nan(of_wrong, inverse, dtype, backend):
    """Also where nothing is made of the element: of x, of all widths and heights, and of no other element."""
    x, params = arguments(6, 5, 4, dtype=dtype)
    wrong = torch.zeros(6, 5, dtype=torch.bool)
    wrong[1, 4] = wrong[3, 0] = True
    leaves = x.masked_fill(wrong, torch.nan).requires_grad_(), params.requires_grad_()
    with fastgen.use_backend(backend):
        outputs = rq_spline(*leaves, bins=4, bound=2.0, inverse=inverse, sum_log_det=False)
        of_outputs = [torch.where(wrong, of_wrong, numbers(6, 5, dtype=dtype)) for _ in outputs]
        grad_x, grad_params = torch.autograd.grad(outputs, leaves, of_outputs)
    assert grad_x[wrong].isnan().all() and grad_params[wrong][:, :8].isnan().all()
    assert grad_x[~wrong].isfinite().all() and grad_params[~wrong].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_tails_what_is_outside_is_refused(backend):
    x, params = arguments(4, 3, 5, None)
    with fastgen.use_backend(backend):
        x[2, 1] = 2.25
        with pytest.raises(ValueError, match=r"x holds 2\.25, wanted numbers from -2\.0 to 2\.0"):
            rq_spline(x, params, bins=5, tails=None, bound=2.0)
        x[2, 1] = torch.nan
        assert rq_spline(x, params, bins=5, tails=None, bound=2.0)[0][2, 1].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_nothing_in_nothing_out(shape, backend):
    x = torch.zeros(shape, requires_grad=True)
    params = torch.zeros(*shape, 11, requires_grad=True)
    with fastgen.use_backend(backend):
        y, log_det = rq_spline(x, params, bins=4)
        grads = torch.autograd.grad(y.sum() + log_det.sum(), (x, params))
    assert y.shape == shape and torch.equal(log_det, torch.zeros(shape[0]))
    assert [g.shape for g in grads] == [x.shape, params.shape]


BAD = {
    "bins is 0": {"bins": 0},
    "bins is 2.5": {"bins": 2.5},
    "bins is True": {"bins": True},
    "tails is 'cubic'": {"tails": "cubic"},
    "inverse is 1": {"inverse": 1},
    "sum_log_det is 'yes'": {"sum_log_det": "yes"},
    "bound is 0.0": {"bound": 0.0},
    "bound is nan": {"bound": float("nan")},
    "bound is Tensor": {"bound": torch.ones(3)},
    "scale is inf": {"scale": float("inf")},
    r"min_width is 0.25, wanted 0 <= min_width < 1 / bins = 0.25": {"min_width": 0.25},
    r"min_height is 0.3, wanted 0 <= min_height < 1 / bins": {"min_height": 0.3},
    "min_width is -0.1": {"min_width": -0.1},
    "min_derivative is 1.0": {"min_derivative": 1.0},
    "min_derivative is 0, wanted a number > 0": {"min_derivative": 0, "parametrization": "softclip"},
    "parametrization is 'exp'": {"parametrization": "exp"},
    "box came with tails='linear'": {"box": (0, 1, 0, 1)},
    r"box is \(1, 0, 0, 1\)": {"box": (1, 0, 0, 1), "tails": None},
    "box has 2 numbers": {"box": (0, 1), "tails": None},
    r"params has shape \(2, 3, 11\), wanted \(2, 3, 12\): 4 widths, 4 heights and 4": {"tails": "circular"},
    r"x has shape \(6,\)": {"x": torch.zeros(6)},
    "x is torch.int64": {"x": torch.zeros(2, 3, dtype=torch.int64)},
    "params is torch.float64, wanted torch.float32 as x": {"params": torch.zeros(2, 3, 11).double()},
    "params is on meta": {"params": torch.zeros(2, 3, 11, device="meta")},
    "params is list": {"params": [1.0]},
    "x is a torch.sparse_coo tensor": {"x": torch.zeros(2, 3).to_sparse()},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    given = {"x": torch.zeros(2, 3), "params": torch.zeros(2, 3, 11), "bins": 4} | BAD[message]
    with pytest.raises((TypeError, ValueError), match=message):
        rq_spline(**given)
