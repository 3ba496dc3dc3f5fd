"""The CPU kernels on an ARM processor with NEON, emulated: the same bits as here."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = [
    ROOT / "tests/cpp/kernels_digest.cpp",
    *(ROOT / f"csrc/cpu/{n}.cpp" for n in ("random", "ising", "ising_pack", "rbm_gibbs")),
]


def digests(folder, compiler, run=()):
    program = folder / Path(compiler).name
    flags = ["-std=c++20", "-O2", "-static", "-ffp-contract=off", "-Wno-psabi", "-DFASTGEN_ISA=baseline"]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([compiler, *flags, *include, *map(str, SOURCES), "-o", str(program)], check=True)
    return subprocess.run([*run, str(program)], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares x86-64 with ARM")
@pytest.mark.skipif(
    not shutil.which(CROSS), reason=f"{CROSS} is not installed (Debian: g++-aarch64-linux-gnu)"
)
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"{EMULATOR} is not installed (Debian: qemu-user)")
def test_neon_gives_the_bits_of_x86(tmp_path):
    here = digests(tmp_path, "g++")
    assert len(here.splitlines()) == 9
    assert digests(tmp_path, CROSS, [EMULATOR]) == here
