"""Triton's compiler in tests: where this process interprets kernels, it takes another one."""

import os
import re
import subprocess
import sys

import pytest

from fastgen.backends import interpreting

INTERPRETED = interpreting()
interpreted = pytest.mark.skipif(not INTERPRETED, reason="the compiler is at work in this very process")
compiling = pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces the compiler")


def passed_ahead_of_time(file):
    """How many of the tests of a file that compile ahead of time pass, in a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", file, "-k", "ahead_of_time"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def compiled(kernel, types, constants, capability, **options):
    """A kernel for arguments of some types and constants, for the GPUs of a compute capability."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415

    source = triton.compiler.ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False, **options})
