"""The Triton kernel of linear, compiled ahead of time for three GPUs."""

import os
import subprocess
import sys

import pytest

from fastgen.backends import interpreting

INTERPRETED = interpreting()


@pytest.mark.skipif(not INTERPRETED, reason="the compiler is at work in this very process")
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "ahead_of_time"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "12 passed" in done.stdout, done.stdout


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")
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
    triton = pytest.importorskip("triton")
    from fastgen.kernels import linear as kernels  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

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
    source = triton.compiler.ASTSource(kernels.linear_kernel, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    assert built.asm["cubin"] and (double or "mma" in built.asm["ptx"])
    assert built.metadata.shared <= 96 * 1024
