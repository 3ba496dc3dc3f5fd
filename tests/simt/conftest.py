"""Builds the layer and the kernels through CMake, once a session for each kind of build."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
# What CMake is told for each kind of build.
KINDS = {
    "plain": {},
    "portable": {"SIMT_PORTABLE": "ON"},
    "address": {"SIMT_SANITIZE": "address,undefined"},
    "thread": {"SIMT_SANITIZE": "thread"},
}


def find_tool(name: str) -> str | None:
    """A program on the PATH, or beside the running Python."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime.h: nvcc's, that of PyPI's nvidia-cuda-runtime, or Triton's."""
    candidates = []
    if nvcc := find_tool("nvcc"):
        listing = subprocess.run(
            [nvcc, "--dryrun", "-E", "-x", "cu", "/dev/null"], check=False, capture_output=True, text=True
        )
        top = [line.split("TOP=")[1] for line in listing.stderr.splitlines() if "TOP=" in line]
        candidates += [Path(t.strip()) / "include" for t in top]
    if nvidia := importlib.util.find_spec("nvidia"):
        for folder in nvidia.submodule_search_locations or []:
            candidates += sorted(Path(folder).glob("*/include"))
    if triton := importlib.util.find_spec("triton"):
        candidates.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return next((c for c in candidates if (c / "cuda_runtime.h").exists() and (c / "crt").exists()), None)


def run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def build() -> Callable[[str], Path]:
    """build(kind) compiles everything for a kind of KINDS and returns the folder with the programs."""
    cmake, ninja, headers = find_tool("cmake"), find_tool("ninja"), cuda_headers()
    if not (cmake and ninja):
        pytest.skip("needs cmake and ninja")
    if headers is None:
        pytest.skip("needs CUDA's headers, which come with nvcc and with triton")

    @cache
    def for_kind(kind: str) -> Path:
        folder = ROOT / "build" / f"simt-{kind}"
        torch_dir = Path(torch.__file__).parent if kind == "plain" else ""
        settings = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "CUDA_INCLUDE_DIR": headers,
            "TORCH_DIR": torch_dir,
            **KINDS[kind],
        }
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of pytest-xdist may be building it
            run(
                [cmake, "-S", str(ROOT / "tests/simt"), "-B", str(folder), "-G", "Ninja"]
                + [f"-D{key}={value}" for key, value in settings.items()]
            )
            run([cmake, "--build", str(folder)])
        return folder

    return for_kind


@pytest.fixture(scope="session")
def run_program(build: Callable[[str], Path]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """run_program(kind, program, *arguments) runs a program; settings are the layer's SIMT_*."""

    def call(kind: str, *command: object, stdin: bytes = b"", **settings: str):
        environment = {
            **os.environ,
            **{f"SIMT_{name.upper()}": value for name, value in settings.items()},
            "ASAN_OPTIONS": "detect_leaks=0",
            "TSAN_OPTIONS": "exitcode=66",
        }
        program, *arguments = (str(c) for c in command)
        return subprocess.run(
            [build(kind) / program, *arguments],
            check=False,
            input=stdin,
            capture_output=True,
            env=environment,
            timeout=300,
        )

    return call


@pytest.fixture(scope="session")
def simt_ops(build: Callable[[str], Path]) -> Any:
    """torch.ops.fastgen_simt: the bindings of the CUDA kernels, on tensors of the CPU."""
    torch.ops.load_library(build("plain") / "libfastgen_simt.so")
    return torch.ops.fastgen_simt
