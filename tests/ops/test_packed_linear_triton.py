"""The Triton kernel of packed_linear, compiled ahead of time for three GPUs."""

import os
import subprocess
import sys

import pytest

from fastgen.backends import interpreting

INTERPRETED = interpreting()
OFTEN = {"bfloat16": "bf16", "q4_1": "u8"}
SELDOM = {"float32": "fp32", "int8": "i8", "q4_0": "u8", "q8_0": "u8"}


@pytest.mark.skipif(not INTERPRETED, reason="the compiler is at work in this very process")
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "ahead_of_time"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "10 passed" in done.stdout, done.stdout


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
@pytest.mark.parametrize(
    "capability, format, data",
    [(capability, format, data) for capability in (80, 90, 100) for format, data in OFTEN.items()]
    + [(90, format, data) for format, data in SELDOM.items()],
)
def test_triton_compiles_ahead_of_time(capability, format, data):
    triton = pytest.importorskip("triton")
    from fastgen.kernels import packed_linear as kernels  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

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
    source = triton.compiler.ASTSource(kernels.packed_linear_kernel, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    assert built.asm["cubin"] and "mma" in built.asm["ptx"]
    assert built.metadata.shared <= 96 * 1024
