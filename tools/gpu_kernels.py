"""Write docs/gpu_kernels.md: what the GPU kernels compile to, for each architecture.

Compiles csrc/cuda with nvcc and kernels/ with Triton, for sm_80, sm_90 and sm_100; reads registers, spills,
shared memory and machine instructions out of the binaries. Needs nvcc and triton; no GPU. Another file than
docs/gpu_kernels.md may be named.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_variants import LAUNCHED, TRITON

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu_kernels.md"
ARCHITECTURES = (80, 90, 100)
MULTIPLICATIONS = ("IMAD.WIDE", "IMAD.HI", "HMMA", "QGMMA", "HGMMA", "UTCHMMA")
WARP_SITES = 32 * 32  # 32 threads, a word of 32 spins each


@dataclass(frozen=True)
class Loop:
    """Addresses of the first and last instruction, and how many there are from one to the other."""

    first: int
    last: int
    length: int
    multiplications: int

    def inside(self, other: Loop) -> bool:
        """Whether this loop is part of another."""
        return other != self and other.first <= self.first and self.last <= other.last


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture."""

    name: str
    architecture: int
    registers: int
    shared: int
    spills: int  # instructions that store to or load from local memory
    length: int
    loops: tuple[Loop, ...]

    def inner_loop(self) -> Loop | None:
        """The loop that does the work: of those that hold no other, the one that multiplies most."""
        innermost = [loop for loop in self.loops if not any(o.inside(loop) for o in self.loops)]
        busy = [loop for loop in innermost if loop.multiplications >= 10]
        return max(busy, key=lambda loop: loop.multiplications, default=None)

    def loop_around(self, loop: Loop) -> Loop | None:
        """The smallest loop that holds `loop`."""
        around = [o for o in self.loops if loop.inside(o)]
        return min(around, key=lambda o: o.length, default=None)


def find_tool(name: str) -> str:
    """A program on the PATH, beside this Python, or in Triton's package."""
    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if not found and not own.exists():
        sys.exit(f"gpu_kernels.py needs {name}; it is neither on the PATH nor in triton's package")
    return found or str(own)


def output_of(*command: object) -> str:
    """What a program prints; ends this one with the program's complaint if it fails."""
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(str(c) for c in command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def readable(symbol: str) -> str:
    """`draw_rows<Normal>` from a mangled name."""
    name = output_of(find_tool("c++filt"), symbol).strip()
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__\w+::|fastgen::|cuda::|^void ", "", name)
    return name.split("(")[0]


def loops_of(code: list[tuple[int, str]]) -> Iterator[Loop]:
    """A branch to an address before it closes a loop; one to itself is the trap behind a kernel's end."""
    for address, text in code:
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        first = int(target[1], 16) if target else address
        if first < address:
            body = [t for a, t in code if first <= a <= address]
            yield Loop(first, address, len(body), sum(any(m in t for m in MULTIPLICATIONS) for t in body))


def kernels_in(binary: Path, architecture: int) -> Iterator[Kernel]:
    """The kernels of an object file or cubin that are compiled for an architecture."""
    cuobjdump, arch = find_tool("cuobjdump"), f"sm_{architecture}"
    usage = output_of(cuobjdump, "--dump-resource-usage", "-arch", arch, binary)
    resources = {m[1]: m for m in re.finditer(r"Function (\S+):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)", usage)}
    sass = output_of(cuobjdump, "-sass", "-arch", arch, binary)
    for part in sass.split("Function : ")[1:]:
        symbol = part.split()[0]
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", part)
        code = [(int(address, 16), text) for address, text in lines if not text.startswith("NOP")]
        yield Kernel(
            readable(symbol),
            architecture,
            registers=int(resources[symbol][2]),
            shared=int(resources[symbol][3]),
            spills=sum(bool(re.search(r"\b(STL|LDL)\b", text)) for _, text in code),
            length=len(code),
            loops=tuple(loops_of(code)),
        )


def cuda_kernels() -> Iterator[Kernel]:
    """The kernels of csrc/cuda, compiled with the project's own flags."""
    build = ROOT / "build" / "nvcc"
    output_of(find_tool("cmake"), "-S", ROOT / "csrc/cuda", "-B", build)
    output_of(find_tool("cmake"), "--build", build)
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        (binary,) = build.rglob(f"{source.name}.o")
        for architecture in ARCHITECTURES:
            yield from kernels_in(binary, architecture)


def triton_kernels() -> Iterator[Kernel]:
    """The kernels of TRITON whose file exists."""
    for module, function, variant, types, constants in TRITON:
        if not (ROOT / "kernels" / f"{module}.py").exists():
            continue
        kernel = getattr(importlib.import_module(f"fastgen.kernels.{module}"), function)
        named = types | dict.fromkeys(constants, "constexpr")
        arguments = {name: named[name] for name in inspect.signature(kernel.fn).parameters}
        source = ASTSource(kernel, arguments, constants)
        options = {"enable_fp_fusion": module == "rq_spline", "num_warps": LAUNCHED.get(function, 4)}
        for architecture in ARCHITECTURES:
            target = GPUTarget("cuda", architecture, 32)
            compiled = triton.compile(source, target=target, options=options)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(compiled.asm["cubin"])
                file.flush()
                (found,) = kernels_in(Path(file.name), architecture)
            yield Kernel(
                f"{found.name}, {variant}",
                architecture,
                found.registers,
                compiled.metadata.shared,
                found.spills,
                found.length,
                found.loops,
            )


def expected_blocks(sites: int) -> float:
    """Philox blocks (four bit planes each) until all of `sites` comparisons are decided, on average."""
    return sum(1 - (1 - 2.0 ** (-4 * drawn)) ** sites for drawn in range(8))


TILES = {
    ("attention_kernel", "queries_kernel", "keys_kernel"): "a tile of queries and keys",
    ("attend_kernel",): "64 keys of 16 queries",
    ("packed_linear_kernel", "linear_kernel"): "32 inputs of 32 rows and 64 outputs",
    ("product_kernel",): "32 channels of 32 outputs and 64 pixels",
    ("convolution_kernel",): "32 channels of one tap, 64 pixels and 32 outputs",
}


def work(kernel: Kernel) -> str:
    """Instructions for a unit of work, in words."""
    loop = kernel.inner_loop()
    if kernel.name.startswith("draw_rows") and loop:
        return f"{loop.length / 4:.1f} a number (loop of {loop.length} for 4)"
    if kernel.name.startswith("draw_kernel"):
        return f"{kernel.length / 8:.1f} a number ({kernel.length} for 8, no loop)"
    if kernel.name.startswith("half_step_kernel") and loop:
        return f"{loop.length / 512:.2f} a multiplication (loop of {loop.length} for 512)"
    for names, tile in TILES.items():
        if kernel.name.startswith(names) and loop:
            return f"loop of {loop.length} for {tile}"
    if "sweep" in kernel.name and loop:
        around = kernel.loop_around(loop)
        once = (around.length if around else kernel.length) - loop.length
        spin = (once + expected_blocks(WARP_SITES) * loop.length) / 32
        return f"{spin:.1f} a spin (loop of {loop.length} for 4 bit planes of 32 spins, and {once} around it)"
    return ""


HEADER = """\
# GPU kernels

**This page is made without a GPU.** It tells what the compilers make of the kernels: nvcc {nvcc} of
those in csrc/cuda, Triton {triton} of those in kernels/. `python tools/gpu_kernels.py` writes it.

- *spills*: instructions that move registers to and from local memory.
- *shared*: bytes of shared memory, less what a launch adds: `sweep_in_shared_memory` takes a chain's packed
  lattice besides, 1 bit a spin, each colour's part of a row rounded up to whole words of 32. From sm_90 on,
  1024 bytes are the system's.
- *instructions*: of the whole kernel. Every branch counts as taken, so all counts are upper bounds.
- A spin is decided when the bit planes drawn so far tell its random number from its threshold. A warp goes on
  until all its {sites} spins are: {blocks:.2f} Philox blocks of four planes on average, as counted here.
- `<true, false>` of the Ising kernels: periodic, not Metropolis. `half_sweep` serves lattices too large for
  shared memory.
- `spline_kernel` and `spline_backward_kernel` serve rq_spline; `product_kernel` invertible_linear;
  `convolution_kernel` conv_net; `made_kernel` made_inverse; `transform_kernel` and the `differentiate_kernel`
  named after it affine_coupling.
- `normalize_kernel`, the other `differentiate_kernel` and `sum_rows_kernel` serve rms_norm and layer_norm.
- The op `transformer` has no kernel of its own on a GPU: it launches those of its layers.

| kernel | architecture | registers | spills | shared | instructions | for a unit of work |
|---|---|---:|---:|---:|---:|---|
"""


def row(kernel: Kernel) -> str:
    """A kernel's line of the table."""
    numbers = (kernel.registers, kernel.spills, kernel.shared, kernel.length)
    cells = (f"`{kernel.name}`", f"sm_{kernel.architecture}", *numbers, work(kernel))
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def page() -> str:
    """The whole page in Markdown."""
    version = re.search(r"release [\d.]+, V([\d.]+)", output_of(find_tool("nvcc"), "--version"))
    header = HEADER.format(
        nvcc=version[1] if version else "of unknown version",
        triton=triton.__version__,
        sites=WARP_SITES,
        blocks=expected_blocks(WARP_SITES),
    )
    kernels = sorted(cuda_kernels(), key=lambda k: k.name) + list(triton_kernels())
    return header + "".join(row(k) for k in kernels)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page())
