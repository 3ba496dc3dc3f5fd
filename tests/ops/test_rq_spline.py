"""rq_spline: against nflows, normflows and zuko, as a bijection, as a density, at its edges, and its bits."""

import pytest
import torch
from rq_spline_inputs import BACKENDS, ISAS, TOLERANCE, agree, arguments, gradients, needs_native, numbers

import fastgen
from fastgen import native
from fastgen.ops import rq_spline
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import INVERSE

# Gradients.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parametrization", ["softmax", "softclip"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "tails, bins", [("linear", 1), ("linear", 4), ("circular", 1), ("circular", 3), (None, 3)]
)
@pytest.mark.parametrize("summed", [True, False])
def test_gradients_agree_with_finite_differences(summed, tails, bins, inverse, parametrization, backend):
    x, params = arguments(3, 5, bins, tails, bound=1.5)
    x = (x * 0.95).requires_grad_()

    def run(x, params):
        return rq_spline(
            x, params, bins=bins, tails=tails, bound=1.5, inverse=inverse, parametrization=parametrization,
            scale=0.7, sum_log_det=summed,
        )  # fmt: skip

    with fastgen.use_backend(backend):
        assert torch.autograd.gradcheck(run, (x, params.requires_grad_()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [50.0, 1e4, 1e6])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_finite_whatever_the_parameters(backend, inverse, size, dtype):
    """Also where the bins are so narrow and steep that b^2 - 4ac would round to less than zero."""
    x, params = arguments(100, 8, 16, dtype=dtype, spread=size)
    x, params = x.requires_grad_(), params.requires_grad_()
    with fastgen.use_backend(backend):
        outputs = rq_spline(x, params, bins=16, bound=2.0, inverse=inverse)
        for found in (*outputs, *gradients(outputs, (x, params))):
            assert found.isfinite().all()


@needs_native
@pytest.mark.parametrize("inverse", [False, True])
def test_native_gradients_are_those_of_the_reference(inverse):
    """On many elements, bins and places, beyond the bound included."""
    x, params = arguments(300, 9, 20, spread=3.0)

    def run(x, params):
        return rq_spline(x, params, bins=20, bound=2.0, inverse=inverse)

    found = {}
    for backend in ("native", "reference"):
        with fastgen.use_backend(backend):
            leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
            found[backend] = gradients(run(*leaves), leaves)
    agree(found["native"], found["reference"], 1e-7)


def test_only_one_of_the_outputs_needs_to_be_used():
    x, params = arguments(5, 3, 4)
    x, params = x.requires_grad_(), params.requires_grad_()
    y, log_det = rq_spline(x, params, bins=4)
    (of_y,) = torch.autograd.grad(y.sum(), params, retain_graph=True)
    (of_log,) = torch.autograd.grad(log_det.sum(), params, retain_graph=True)
    (of_both,) = torch.autograd.grad(y.sum() + log_det.sum(), params)
    agree([of_y + of_log], [of_both], 1e-12)
    assert of_y.abs().max() > 0 and of_log.abs().max() > 0


@pytest.mark.parametrize("inverse", [False, True])
def test_nothing_but_the_inputs_is_kept_for_the_backward_pass(inverse):
    x, params = arguments(64, 8, 8, dtype=torch.float32)
    x, params = x.requires_grad_(), params.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rq_spline(x, params, bins=8, inverse=inverse)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), params.data_ptr()}


# A bijection, and what it does to densities.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parametrization", ["softmax", "softclip"])
@pytest.mark.parametrize("tails", ["linear", "circular", None])
@pytest.mark.parametrize("dtype, tolerance", INVERSE["rq_spline"].items())
def test_the_inverse_inverts(dtype, tolerance, tails, parametrization, backend):
    x, params = arguments(200, 6, 8, tails, dtype=dtype)
    options = {"bins": 8, "tails": tails, "bound": 2.0, "parametrization": parametrization}
    with fastgen.use_backend(backend):
        y, log_det = rq_spline(x, params, **options)
        back, log_det_back = rq_spline(y, params, inverse=True, **options)
    assert y.dtype == log_det.dtype == back.dtype == dtype
    # What y lost in rounding, the inverse stretches by its slope.
    stretch = (-rq_spline(x.double(), params.double(), sum_log_det=False, **options)[1]).exp().clamp(min=1)
    assert ((back - x).double().abs() <= tolerance * stretch).all()
    if dtype != torch.bfloat16:
        agree([log_det_back], [-log_det], 1000 * tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [1, 8, 48])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_many_splines_in_a_row_are_undone(dtype, tolerance, depth, backend):
    straight = torch.cat([torch.zeros(16), torch.full((7,), 0.54)])  # slopes of nearly one
    layers = [numbers(100, 4, 23, seed=i, dtype=dtype, scale=0.2) + straight for i in range(depth)]
    x = z = numbers(100, 4, dtype=dtype)
    with fastgen.use_backend(backend):
        for params in layers:
            z, _ = rq_spline(z, params, bins=8, bound=3.0)
        for params in reversed(layers):
            z, _ = rq_spline(z, params, bins=8, bound=3.0, inverse=True)
    assert (z - x).abs().max() < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_determinant_is_that_of_the_jacobian(inverse, backend):
    x, params = arguments(6, 4, 5)
    with fastgen.use_backend(backend):
        _, log_det = rq_spline(x, params, bins=5, bound=2.0, inverse=inverse)
        for i in range(6):
            jacobian = torch.autograd.functional.jacobian(
                lambda row: rq_spline(row, params[i : i + 1], bins=5, bound=2.0, inverse=inverse)[0],  # noqa: B023
                x[i : i + 1],
            )[0, :, 0]
            agree([torch.linalg.slogdet(jacobian).logabsdet], [log_det[i]], 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tails", ["linear", "circular"])
def test_a_density_integrates_to_one(tails, backend):
    """A standard normal behind the spline, by the trapezoidal rule; a wrong sign of log_det would show."""
    grid = torch.linspace(-9, 9, 40_001, dtype=torch.float64)[:, None]
    _, params = arguments(1, 1, 8, tails, spread=2.0)
    with fastgen.use_backend(backend):
        z, log_det = rq_spline(grid, params.expand(len(grid), 1, -1), bins=8, tails=tails, bound=3.0)
    normal = torch.distributions.Normal(0.0, 1.0)
    density = (normal.log_prob(z[:, 0]) + log_det).exp()
    assert abs(torch.trapezoid(density, grid[:, 0]) - 1) < 1e-5
    assert abs(torch.trapezoid((normal.log_prob(z[:, 0]) - log_det).exp(), grid[:, 0]) - 1) > 1e-2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_it_rises_everywhere_and_is_continuous(inverse, backend):
    x = torch.linspace(-2.2, 2.2, 20_001, dtype=torch.float64)[:, None]
    _, params = arguments(1, 1, 7, spread=2.0)
    with fastgen.use_backend(backend):
        y, log_det = rq_spline(x, params.expand(len(x), 1, -1), bins=7, bound=2.0, inverse=inverse)
    steps = y[1:, 0] - y[:-1, 0]
    assert (steps > 0).all() and (steps < 1.1 * log_det.exp().max() * 4.4 / 20_000).all()


# Memory and bits.


@pytest.mark.parametrize("inverse", [False, True])
def test_non_contiguous_and_expanded_tensors_are_taken(inverse):
    x, params = arguments(6, 5, 4)
    turned = x.T.contiguous().T, params.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned[0].is_contiguous() and not turned[1].is_contiguous()
    agree(rq_spline(*turned, bins=4, inverse=inverse), rq_spline(x, params, bins=4, inverse=inverse), 0)
    one = params[:1].expand(6, 5, 11)
    agree(rq_spline(x, one, bins=4), rq_spline(x, one.contiguous(), bins=4), 0)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 5, 32, 1100])
def test_rows_have_the_same_bits_in_every_batch_with_any_threads(width, dtype, isa):
    x, params = arguments(37, width, 5, dtype=dtype)
    grads = numbers(37, width, dtype=dtype, seed=8), numbers(37, dtype=dtype, seed=9)
    options = (5, False, "linear", -2.0, 2.0, -2.0, 2.0, 1e-3, 1e-3, 1e-3, 1.0, "softmax", True)

    def run(rows):
        tensors = [t[rows].contiguous() for t in (*grads, x, params)]
        return (
            *rq_spline(*tensors[2:], bins=5, bound=2.0),
            *rq_spline(*tensors[2:], bins=5, bound=2.0, inverse=True),
            *torch.ops.fastgen.rq_spline_backward(*tensors, *options),
        )

    with native.instruction_set(isa):
        with with_threads(1):
            together = run(slice(None))
        with with_threads(3):
            parts = [run(slice(first, last)) for first, last in ((0, 1), (1, 20), (20, 37))]
    for whole, *pieces in zip(together, *parts, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows, width, bins", [(1, 1, 1), (3, 5, 2), (5, 7, 8), (2, 33, 11), (9, 130, 6)])
@pytest.mark.parametrize("inverse, summed", [(False, True), (True, False)])
def test_kernels_write_all_of_their_memory_and_no_other(inverse, summed, rows, width, bins, dtype, isa):
    x, params = arguments(rows, width, bins, dtype=dtype)
    shape_of_log = (rows,) if summed else (rows, width)
    of_y, of_log = numbers(rows, width, dtype=dtype, seed=4), numbers(*shape_of_log, dtype=dtype, seed=5)
    options = (bins, inverse, "linear", -2.0, 2.0, -2.0, 2.0, 1e-3, 1e-3, 1e-3, 1.0, False, summed)
    with native.instruction_set(isa):
        for kernel, given, shapes in (
            (torch.ops.fastgen_native.rq_spline, (x, params), (x.shape, shape_of_log)),
            (torch.ops.fastgen_native.rq_spline_backward, (of_y, of_log, x, params), (x.shape, params.shape)),
        ):
            with fenced(shapes[0], dtype) as first, fenced(shapes[1], dtype) as second:
                inputs = []
                for tensor in given:  # what lies around the inputs is never seen in the results
                    around = torch.full((tensor.numel() + 128,), torch.nan, dtype=dtype)
                    inside = around[64:-64].view(tensor.shape)
                    inputs.append(inside.copy_(tensor))
                kernel(first, second, *inputs, *options)
                assert first.isfinite().all() and second.isfinite().all()


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("parametrization", ["softmax", "softclip"])
@pytest.mark.parametrize("tails, bins", [("linear", 1), ("linear", 9), ("circular", 4), (None, 33)])
@pytest.mark.parametrize("inverse", [False, True])
def test_every_instruction_set_agrees_with_the_reference(inverse, tails, bins, parametrization, dtype, isa):
    """In float32 against the reference in float64: as close as roundings in narrow bins allow."""
    x, params = arguments(23, 5, bins, tails, dtype=dtype)
    options = {"bins": bins, "tails": tails, "bound": 2.0, "inverse": inverse, "sum_log_det": False}
    options["parametrization"] = parametrization
    with native.instruction_set(isa), fastgen.use_backend("native"):
        leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
        found = rq_spline(*leaves, **options)
        found_gradients = gradients(found, leaves)
    with fastgen.use_backend("reference"):
        leaves = x.double().requires_grad_(), params.double().requires_grad_()
        wanted = rq_spline(*leaves, **options)
        weights = [numbers(*y.shape, seed=2 + i) for i, y in enumerate(wanted)]
        wanted_gradients = torch.autograd.grad(wanted, leaves, weights)
    tolerance, of_gradients = {torch.float32: (1e-3, 1e-3), torch.float64: (1e-11, 1e-10)}[dtype]
    agree([y.double() for y in found], wanted, tolerance)
    for a, b in zip(found_gradients, wanted_gradients, strict=True):
        largest = b.abs().max().clamp(min=1)
        agree([a.double() / largest], [b / largest], of_gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_half_precision_is_float32_rounded_once(inverse, backend, dtype):
    x, params = arguments(30, 6, 8, dtype=dtype)
    options = {"bins": 8, "bound": 2.0, "inverse": inverse}
    with fastgen.use_backend(backend):
        leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
        wide = x.float().requires_grad_(), params.float().requires_grad_()
        found, wanted = rq_spline(*leaves, **options), rq_spline(*wide, **options)
        ones = [torch.ones_like(y) for y in found]
        found += torch.autograd.grad(found, leaves, ones)
        wanted += torch.autograd.grad(wanted, wide, [one.float() for one in ones])
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


@pytest.mark.slow
@needs_native
def test_the_backward_pass_takes_less_than_a_third_of_the_memory_of_nflows():
    pytest.importorskip("nflows")
    from fastgen.bench import peak_memory  # noqa: PLC0415

    if not peak_memory.SUPPORTED:
        pytest.skip("this system does not tell the peak of a process")
    case = "4096x32, 8 bins, forward and backward"
    peaks = peak_memory.in_subprocess("rq_spline", case, device="cpu", threads=1, isa=None)
    assert peaks["fastgen"] < 0.3 * peaks["nflows"]
