"""Builds the C++ extension through CMakeLists.txt; without a C++ compiler fastgen installs as pure Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def missing_tool() -> str:
    """What the build lacks on this machine; empty if nothing."""
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "no C++ compiler (set CXX, or install g++ or clang++)"
    if not shutil.which("cmake"):
        return "no cmake"
    try:
        import torch  # noqa: F401, PLC0415  only its headers are needed
    except ImportError:
        return "torch is not installed in the environment that builds"
    return ""


def can_build_cuda() -> bool:
    """Whether the CUDA kernels can be built, and torch can call them."""
    import torch  # noqa: PLC0415

    return shutil.which("nvcc") is not None and torch.version.cuda is not None


class BuildWithCMake(build_ext):
    """One extension module, `fastgen._native`, built by CMake."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build, or say why there is nothing to build."""
        if reason := missing_tool():
            print(f"fastgen: installing without the C++ kernels: {reason}", file=sys.stderr)
            return
        in_tree = self.inplace or self.editable_mode
        output = ROOT / "fastgen" if in_tree else Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            *generator,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFASTGEN_CUDA={'ON' if can_build_cuda() else 'OFF'}",
        ]
        configure += [f"-DFASTGEN_OUTPUT_DIR={output}", *os.environ.get("CMAKE_ARGS", "").split()]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", "--target", "_native"], check=True)

    def copy_extensions_to_source(self) -> None:
        """CMake has written into the source tree already (or there is nothing to copy)."""

    def get_outputs(self) -> list[str]:
        """Only what was really built is installed."""
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    packages=[
        *(
            str(p.parent.relative_to(ROOT)).replace(os.sep, ".")
            for p in sorted(ROOT.glob("fastgen/**/__init__.py"))
        ),
        "fastgen.kernels",
    ],
    ext_modules=[Extension("fastgen._native", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
