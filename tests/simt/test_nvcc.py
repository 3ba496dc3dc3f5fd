"""nvcc compiles every kernel for every architecture, warnings as errors. Nothing runs: that takes a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on the PATH"),
]
ROOT = Path(__file__).parents[2]


def run(*command):
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_kernel_compiles():
    folder = ROOT / "build" / "nvcc"
    run("cmake", "-S", ROOT / "csrc/cuda", "-B", folder)
    run("cmake", "--build", folder)
    compiled = {path.name for path in folder.rglob("*.o")}
    assert compiled >= {f"{source.name}.o" for source in (ROOT / "csrc/cuda").glob("*.cu")}


LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.build_info()["cuda"], "built without CUDA"
for op in sys.argv[2:]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastgen_cuda::{op}", "CUDA"), op
"""


@pytest.mark.slow
def test_the_extension_with_cuda_builds_and_loads():
    """Also against a torch without CUDA: the bindings use torch's stable ABI, which knows devices by name."""
    folder = ROOT / "build" / "native-cuda"
    run(
        *("cmake", "-S", ROOT, "-B", folder, "-DFASTGEN_CUDA=ON"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-DFASTGEN_OUTPUT_DIR={folder}"),
    )
    run("cmake", "--build", folder, "--target", "_native", "--parallel", 2)
    (extension,) = folder.glob("_native*.so")
    run(sys.executable, "-c", LOAD, extension, "bits", "uniform", "normal", "bernoulli", "ising")


@pytest.mark.slow
def test_the_page_on_gpu_kernels_is_up_to_date(tmp_path):
    pytest.importorskip("triton")
    run("env", "TRITON_INTERPRET=0", sys.executable, ROOT / "tools/gpu_kernels.py", tmp_path / "page.md")
    before, after = (page.read_text() for page in (ROOT / "docs/gpu_kernels.md", tmp_path / "page.md"))
    versions = [text.split("kernels: ")[1].split("`python")[0] for text in (before, after)]
    if versions[0] != versions[1]:
        pytest.skip(f"docs/gpu_kernels.md was written with other compilers: {versions[0]}")
    assert after == before, "run tools/gpu_kernels.py and commit docs/gpu_kernels.md"
