"""Triton kernels of affine_coupling, invertible_linear and conv_net, compiled ahead of time for GPUs."""

import pytest

from fastgen.reference.affine_coupling import SCALE_MAPS

from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time

PAIRS = [("fp32", name) for name in SCALE_MAPS] + [("bf16", "tanh"), ("fp64", "softplus")]


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 3 * (len(PAIRS) + 6)


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype, scale_map", PAIRS)
def test_affine_coupling_compiles_ahead_of_time(dtype, scale_map, capability):
    pytest.importorskip("triton")
    from fastgen.kernels import affine_coupling as kernels  # noqa: PLC0415

    constants = {
        "MAP": scale_map, "CLAMP": 2.0, "MIN_SCALE": 0.0, "INVERSE": True, "MASKED": True, "RUN": 1,
        "SHIFT_FIRST": True, "ROWS": 1, "SIZE": kernels.BLOCK,
    }  # fmt: skip
    sizes = {"mask": "*u8", "rows": "i32", "width": "i32", "begin": "i32", "count": "i32"}
    forward = dict.fromkeys(("y", "log_det", "x", "raw_params"), f"*{dtype}") | sizes
    names = ("grad_x", "grad_params", "grad_y", "grad_log_det", "x", "raw_params")
    backward = dict.fromkeys(names, f"*{dtype}") | sizes
    for kernel, types in ((kernels.transform_kernel, forward), (kernels.differentiate_kernel, backward)):
        assert compiled(kernel, types, constants, capability).asm["cubin"]


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
def test_invertible_linear_compiles_ahead_of_time(dtype, capability):
    pytest.importorskip("triton")
    from fastgen.kernels import invertible_linear as kernels  # noqa: PLC0415

    double = dtype == "fp64"
    tile = (kernels.SIDE,) * 3 if double else (kernels.OUTPUTS, kernels.PIXELS, kernels.INPUTS)
    constants = {"BIAS": True, **dict(zip(("OUTPUTS", "PIXELS", "INPUTS"), tile, strict=True))}
    sizes = ("channels", "pixels", "image_stride", "channel_stride", "pixel_stride")
    wide = "*fp64" if double else "*fp32"
    types = {"y": f"*{dtype}", "x": f"*{dtype}", "weight": wide, "bias": wide, **dict.fromkeys(sizes, "i32")}
    built = compiled(kernels.product_kernel, types, constants, capability)
    assert built.asm["cubin"] and (double or "mma" in built.asm["ptx"])


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
def test_conv_net_compiles_ahead_of_time(dtype, capability):
    pytest.importorskip("triton")
    from fastgen.kernels import conv_net as kernels  # noqa: PLC0415

    double = dtype == "fp64"
    tile = (kernels.SIDE,) * 3 if double else (kernels.PIXELS, kernels.OUTPUTS, kernels.INPUTS)
    constants = {"TAPS": 3, "BIAS": True, "ACTIVATION": "leaky_relu"}
    constants |= dict(zip(("PIXELS", "OUTPUTS", "INPUTS"), tile, strict=True))
    strides = [f"{t}_{d}" for t in ("x", "y") for d in ("image", "row", "column", "channel")]
    strides += [f"weight_{d}" for d in ("output", "input", "row", "column")]
    sizes = ("pixels", "height", "width", "inputs", "outputs", "bias_stride", *strides)
    types = dict.fromkeys(("y", "x", "weight", "bias"), f"*{dtype}") | {"slope": "fp32"}
    types |= dict.fromkeys(sizes, "i32")
    built = compiled(kernels.convolution_kernel, types, constants, capability, num_warps=kernels.WARPS)
    assert built.asm["cubin"] and (double or "mma" in built.asm["ptx"])
