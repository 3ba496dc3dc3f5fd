"""nvcc compiles every kernel for every architecture, warnings as errors. Nothing runs: that takes a GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on the PATH")
def test_every_kernel_compiles():
    folder = ROOT / "build" / "nvcc"
    for command in (["cmake", "-S", ROOT / "csrc/cuda", "-B", folder], ["cmake", "--build", folder]):
        done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    compiled = {path.name for path in folder.rglob("*.o")}
    assert compiled >= {f"{source.name}.o" for source in (ROOT / "csrc/cuda").glob("*.cu")}
