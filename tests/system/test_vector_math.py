"""The elementary functions of csrc/cpu/vector_math.h, float and double, for each instruction set."""

import math
import shutil
import subprocess
from pathlib import Path

import pytest

from fastgen import native

ROOT = Path(__file__).parents[2]
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
FUNCTIONS = ["exp", "expm1", "log", "log1p", "tanh", "sigmoid", "softplus", "atan"]


@pytest.mark.skipif(not shutil.which("g++"), reason="compiles a C++ program with g++")
@pytest.mark.parametrize("isa", native.usable_isas())
def test_errors_stay_below_2_units_in_the_last_place(isa, tmp_path):
    program = tmp_path / "vector_math"
    build = ["g++", "-std=c++20", "-O2", "-w", "-ffp-contract=off", f"-DFASTGEN_ISA={isa}", *FLAGS[isa]]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([*build, *include, ROOT / "tests/cpp/vector_math.cpp", "-o", program], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in output.splitlines()]
    assert [row[:2] for row in rows] == [[kind, name] for kind in ("float", "double") for name in FUNCTIONS]
    for kind, name, error, place, zero_kept in rows:
        assert math.isfinite(float(error)) and float(error) <= 2, f"{kind} {name} at {place}: {error}"
        assert zero_kept == "1", f"{kind} {name} loses the sign of zero"
