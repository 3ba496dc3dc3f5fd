"""The Triton kernel of packed_linear, compiled ahead of time for three GPUs."""

import pytest

from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time

OFTEN = {"bfloat16": "bf16", "q4_1": "u8"}
SELDOM = {"float32": "fp32", "int8": "i8", "q4_0": "u8", "q8_0": "u8"}


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == 10


@compiling
@pytest.mark.parametrize(
    "capability, format, data",
    [(capability, format, data) for capability in (80, 90, 100) for format, data in OFTEN.items()]
    + [(90, format, data) for format, data in SELDOM.items()],
)
def test_triton_compiles_ahead_of_time(capability, format, data):
    pytest.importorskip("triton")
    from fastgen.kernels import packed_linear as kernels  # noqa: PLC0415

    constants = {
        "FORMAT": format, "HEAD": kernels.HEAD_BYTES.get(format, 0),
        "VALUES": kernels.VALUE_BYTES.get(format, 0),
        "ACTIVATION": "silu", "BIAS": True, "RESIDUAL": True,
        "ROWS": kernels.ROWS, "OUTPUTS": kernels.OUTPUTS, "INPUTS": kernels.INPUTS,
    }  # fmt: skip
    signature = {
        **dict.fromkeys(("x", "data", "scale", "bias", "residual", "y"), "*fp32"), "data": f"*{data}",
        **dict.fromkeys(("rows", "inputs", "outputs"), "i32"), **dict.fromkeys(constants, "constexpr"),
    }  # fmt: skip
    built = compiled(kernels.packed_linear_kernel, signature, constants, capability)
    assert built.asm["cubin"] and "mma" in built.asm["ptx"]
    assert built.metadata.shared <= 96 * 1024
