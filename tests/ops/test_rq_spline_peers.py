"""rq_spline agrees with the splines of nflows, normflows and zuko."""

import pytest
import torch
from rq_spline_inputs import BACKENDS, TOLERANCE, agree, arguments, compare, numbers

import fastgen
from fastgen.ops import rq_spline

# Agreement with the libraries that people use.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 8, 13])
def test_it_agrees_with_nflows(bins, inverse, dtype, backend):
    splines = pytest.importorskip("nflows.transforms.splines")

    def theirs(x, params):
        raw = params.split([bins, bins, bins - 1], -1)
        return splines.unconstrained_rational_quadratic_spline(x, *raw, inverse=inverse, tail_bound=2.0)

    x, params = arguments(40, 7, bins, dtype=dtype)
    with fastgen.use_backend(backend):
        compare(
            lambda x, p: rq_spline(x, p, bins=bins, inverse=inverse, bound=2.0, sum_log_det=False),
            theirs, x, params,
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
def test_it_agrees_with_nflows_without_tails(inverse, dtype, backend):
    splines = pytest.importorskip("nflows.transforms.splines")
    minima = {"min_derivative": 0.01}

    def theirs(x, params):
        return splines.rational_quadratic_spline(
            x, *params.split([6, 6, 7], -1), inverse=inverse, left=-1.0, right=4.0, bottom=0.0, top=3.0,
            min_bin_width=0.02, min_bin_height=0.03, **minima,
        )  # fmt: skip

    def ours(x, params):
        return rq_spline(
            x, params, bins=6, inverse=inverse, tails=None, box=(-1, 4, 0, 3), min_width=0.02,
            min_height=0.03, sum_log_det=False, **minima,
        )  # fmt: skip

    low, high = (0.0, 3.0) if inverse else (-1.0, 4.0)  # nflows checks both against left and right
    x = low + (high - low) * torch.rand(30, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with fastgen.use_backend(backend):
        compare(ours, theirs, x, numbers(30, 5, 19, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails, bins", [("linear", 8), ("circular", 1), ("circular", 8)])
def test_it_agrees_with_normflows(tails, bins, inverse, dtype, backend):
    splines = pytest.importorskip("normflows.utils.splines")

    def theirs(x, params):
        raw = params.split([bins, bins, params.shape[-1] - 2 * bins], -1)
        return splines.unconstrained_rational_quadratic_spline(
            x, *raw, inverse=inverse, tails=tails, tail_bound=2.0
        )

    def ours(x, p):
        return rq_spline(x, p, bins=bins, inverse=inverse, tails=tails, bound=2.0, sum_log_det=False)

    x, params = arguments(40, 7, bins, tails, dtype=dtype)
    with fastgen.use_backend(backend):
        compare(ours, theirs, x, params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [1, 8])
def test_it_agrees_with_zuko(bins, inverse, dtype, backend):
    transforms = pytest.importorskip("zuko.transforms")

    def theirs(x, params):
        transform = transforms.MonotonicRQSTransform(*params.split([bins, bins, bins - 1], -1), bound=5.0)
        return (transform.inv if inverse else transform).call_and_ladj(x)

    def ours(x, p):
        return rq_spline(
            x, p, bins=bins, inverse=inverse, bound=5.0, parametrization="softclip", sum_log_det=False
        )

    x, params = arguments(40, 7, bins, dtype=dtype, bound=5.0, spread=2.0)
    with fastgen.use_backend(backend):
        compare(ours, theirs, x, params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_multiplies_raw_widths_and_heights(backend):
    x, params = arguments(9, 4, 5)
    scaled = params.clone()
    scaled[..., :10] /= 128**0.5  # what nflows does in place to the output of a network with 128 hidden units
    with fastgen.use_backend(backend):
        agree(rq_spline(x, params, bins=5, scale=128**-0.5), rq_spline(x, scaled, bins=5), 1e-12)
