"""The Triton kernel of linear, compiled ahead of time for three GPUs."""

import pytest

from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 12


@compiling
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    "activation, rows, weights",
    [
        ("none", "fp32", "fp32"),
        ("gelu", "fp32", "bf16"),
        ("elu", "bf16", "bf16"),
        ("softplus", "fp64", "fp64"),
    ],
)
def test_triton_compiles_ahead_of_time(capability, activation, rows, weights):
    pytest.importorskip("triton")
    from fastgen.kernels import linear as kernels  # noqa: PLC0415

    double = rows == "fp64"
    tile = (kernels.SIDE,) * 3 if double else (kernels.ROWS, kernels.OUTPUTS, kernels.INPUTS)
    constants = {
        "ACTIVATION": activation, "BIAS": True, "RESIDUAL": True, "WIDEN": False,
        **dict(zip(("ROWS", "OUTPUTS", "INPUTS"), tile, strict=True)),
    }  # fmt: skip
    signature = {
        "x": f"*{rows}", "weight": f"*{weights}", "bias": "*fp64" if double else "*fp32",
        "residual": f"*{rows}", "y": f"*{rows}", "rows": "i32", "inputs": "i32", "outputs": "i32",
        **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    built = compiled(kernels.linear_kernel, signature, constants, capability)
    assert built.asm["cubin"] and (double or "mma" in built.asm["ptx"])
    assert built.metadata.shared <= 96 * 1024
