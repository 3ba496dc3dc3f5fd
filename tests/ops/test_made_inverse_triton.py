"""The Triton kernel of made_inverse: interpreted here, compiled ahead of time for three GPUs."""

import pytest
import torch

from fastgen.ops import Affine, Spline
from fastgen.tolerances import REFERENCE

from .test_made_inverse import make, on
from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time

pytest.importorskip("triton")


@pytest.mark.parametrize("transform", [Affine(), Affine("softplus", min_scale=1e-3), Spline(3)], ids=str)
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triton_is_the_reference(transform, context, dtype):
    given = make(4, (7, 7, 7), transform, rows=18, dtype=dtype, context=context, degrees="random")
    tolerance = REFERENCE["made_inverse"][dtype]
    wanted = on("reference", *given)
    torch.testing.assert_close(on("triton", *given), wanted, rtol=tolerance, atol=tolerance)


def test_triton_widens_bfloat16_weights():
    given = make(4, (7, 7, 7), rows=3, dtype=torch.float32, weights=torch.bfloat16)
    torch.testing.assert_close(on("triton", *given), on("reference", *given), rtol=1e-4, atol=1e-4)


def test_a_row_has_the_same_bits_in_any_batch():
    (z, made, transform), _ = make(5, (9, 9, 9), rows=20, dtype=torch.float32)
    whole = on("triton", (z, made, transform), {})
    part = on("triton", (z[15:18], made, transform), {})
    assert all(torch.equal(a, b[15:18]) for a, b in zip(part, whole, strict=True))


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 9


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kind, real", [("affine", "fp32"), ("spline", "fp32"), ("affine", "fp64")])
def test_triton_compiles_ahead_of_time(capability, kind, real):
    from fastgen.kernels import made_inverse as kernels  # noqa: PLC0415

    constants = {
        "ACTIVATION": "elu", "SPLINE": kind == "spline", "MAP": "softplus", "CLAMP": 1.0, "MIN_SCALE": 1e-3,
        "BINS": 8, "INVERSE": True, "TAIL": 0, "LEFT": -3.0, "RIGHT": 3.0, "BOTTOM": -3.0, "TOP": 3.0,
        "X_MINIMUM": 6e-3, "Y_MINIMUM": 6e-3, "MIN_DERIVATIVE": 1e-3, "SCALE": 1.0, "CLIP": 0.0,
        "SIDE": kernels.SIDE, "FIELDS": kernels.FIELDS,
    }  # fmt: skip
    reals = dict.fromkeys(("z", "log_det_out", "weight", "bias", "context", "seen", "kept"), f"*{real}")
    whole = dict.fromkeys(("table", "firsts", "numbers"), "*i64")
    names = [name for name in kernels.made_kernel.arg_names if name not in {*reals, *whole, *constants}]
    signature = {**reals, **whole, **dict.fromkeys(names, "i32"), **dict.fromkeys(constants, "constexpr")}
    ordered = {name: signature[name] for name in kernels.made_kernel.arg_names}
    built = compiled(kernels.made_kernel, ordered, constants, capability)
    assert built.asm["cubin"] and ("mma" in built.asm["ptx"]) == (real == "fp32")
    assert "bar.sync" in built.asm["ptx"]
    assert built.metadata.shared <= 96 * 1024
