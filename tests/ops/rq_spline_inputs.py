"""What the tests of rq_spline share: implementations, inputs, comparisons."""

import pytest
import torch

from fastgen import native
from fastgen.tolerances import FLOAT64

needs_native = pytest.mark.skipif(native.module is None, reason=native.reason)
ISAS = native.usable_isas()
BACKENDS = ["reference"] + ["native"] * (native.module is not None)
MORE = {"linear": -1, "circular": 0, None: 1}
TOLERANCE = FLOAT64["rq_spline"]


def numbers(*shape, seed=0, dtype=torch.float64, scale=1.0):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * made).to(dtype)


def arguments(rows, width, bins, tails="linear", *, dtype=torch.float64, bound=2.0, spread=1.0, seed=0):
    """x, a fifth of which lies beyond the bound if there are tails, and raw parameters."""
    x = numbers(rows, width, seed=seed, dtype=dtype, scale=0.75 * bound)
    x = x.clamp(-bound, bound) if tails is None else x
    return x, numbers(rows, width, 3 * bins + MORE[tails], seed=seed + 1, dtype=dtype, scale=spread)


def gradients(outputs, leaves, seed=2):
    weights = [numbers(*y.shape, seed=seed + i, dtype=y.dtype) for i, y in enumerate(outputs)]
    return torch.autograd.grad(outputs, leaves, weights)


def agree(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def evaluate(spline, x, params, dtype):
    """Values and gradients."""
    leaves = x.to(dtype).requires_grad_(), params.to(dtype).requires_grad_()
    outputs = spline(*leaves)
    return [y.detach().double() for y in (*outputs, *gradients(outputs, leaves))]


def compare(our_spline, their_spline, x, params):
    """Values and gradients in x's dtype against theirs in float64, as shares of the largest.

    The error may be the tolerance, or a small multiple of what their own float32 loses.
    """
    exact = evaluate(their_spline, x, params, torch.float64)
    found, lost = (evaluate(spline, x, params, x.dtype) for spline in (our_spline, their_spline))
    for a, b, wanted in zip(found, lost, exact, strict=True):
        largest = wanted.abs().max().clamp(min=1)
        ours, theirs = (a - wanted).abs() / largest, (b - wanted).abs() / largest
        assert ours.mean() <= max(TOLERANCE[x.dtype] / 10, 2 * float(theirs.mean()))
        assert ours.max() <= max(TOLERANCE[x.dtype], 8 * float(theirs.max()))
