"""The Triton kernels of rq_spline: interpreted here, compiled ahead of time for three GPUs."""

import pytest
import torch

from fastgen import use_backend
from fastgen.ops import rq_spline
from fastgen.tolerances import REFERENCE

from .triton_compiler import compiling, interpreted, passed_ahead_of_time


def both(x, params, **options):
    """Values and gradients by Triton and by the reference."""
    found = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
            outputs = rq_spline(*leaves, **options)
            weights = [y.detach().cos() for y in outputs]
            found.append([*outputs, *torch.autograd.grad(outputs, leaves, weights)])
    return zip(*found, strict=True)


@interpreted
@pytest.mark.parametrize("dtype, tolerance", REFERENCE["rq_spline gradients"].items())
@pytest.mark.parametrize("parametrization", ["softmax", "softclip"])
@pytest.mark.parametrize("inverse, summed", [(False, True), (True, False)])
@pytest.mark.parametrize(
    "tails, bins, count", [("linear", 1, 2), ("linear", 5, 14), ("circular", 4, 12), (None, 3, 10)]
)
def test_triton_gives_what_the_reference_gives(
    tails, bins, count, inverse, summed, parametrization, dtype, tolerance
):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(4)
    x = 1.5 * torch.randn(2, 70, generator=generator, dtype=torch.float64).to(dtype)  # more than one block
    x = x.clamp(-2, 2) if tails is None else x
    params = torch.randn(2, 70, count, generator=generator, dtype=torch.float64).to(dtype)
    for ours, theirs in both(
        x, params, bins=bins, tails=tails, bound=2.0, inverse=inverse, parametrization=parametrization,
        scale=0.7, sum_log_det=summed,
    ):  # fmt: skip
        largest = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / largest, theirs / largest, rtol=tolerance, atol=tolerance)


@interpreted
@pytest.mark.parametrize("inverse", [False, True])
def test_triton_keeps_nan_to_itself_and_halves_rounded_once(inverse):
    pytest.importorskip("triton")
    x = torch.linspace(-4, 4, 12).reshape(2, 6)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    params = torch.linspace(-1, 1, 2 * 6 * 11).reshape(2, 6, 11).cos()
    for dtype in (torch.float32, torch.bfloat16):
        tolerance = 1e-4 if dtype == torch.float32 else 1e-2
        options = {"bins": 4, "bound": 3.0, "inverse": inverse, "sum_log_det": False}
        pairs = list(both(x.to(dtype), params.to(dtype), **options))
        for ours, theirs in pairs:
            rows = x.isfinite()
            torch.testing.assert_close(ours[rows], theirs[rows], rtol=tolerance, atol=tolerance)
        for found in zip(*pairs, strict=True):  # the outputs, then the gradients of x, widths and heights
            y, log_det, of_x, of_params = (each[0, 3] for each in found)
            assert y.isnan() and log_det.isnan() and of_x.isnan() and of_params[:8].isnan().all()


@interpreted
def test_triton_launches_on_the_device_of_the_tensors(monkeypatch):
    pytest.importorskip("triton")
    made_current, device_of = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: made_current.append(x.shape) or device_of(x))
    x, params = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, 5)
    with use_backend("triton"):
        rq_spline(x, params, bins=2)[0].sum().backward()
    assert made_current == [(3, 2)] * 2


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 12


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("inverse, dtype, rule", [(False, "fp32", "softmax"), (True, "fp64", "softclip")])
def test_triton_compiles_ahead_of_time(inverse, dtype, rule, backward, capability):
    triton = pytest.importorskip("triton")
    from fastgen.kernels import rq_spline as kernels  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

    constants = kernels._constants(
        8, inverse, "linear", -3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3, 1e-3, 1.0, rule, True
    )
    given = ("grad_y", "grad_log_det") if backward else ()
    made = ("grad_x", "grad_params") if backward else ("y_out", "log_det_out")
    pointers = dict.fromkeys((*given, "x_in", "raw_params", *made), f"*{dtype}")
    signature = {**pointers, "columns": "i32", "parameters": "i32", **dict.fromkeys(constants, "constexpr")}
    kernel = kernels.spline_backward_kernel if backward else kernels.spline_kernel
    built = triton.compile(
        triton.compiler.ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32)
    )
    assert built.asm["cubin"] and built.metadata.shared <= 1024
