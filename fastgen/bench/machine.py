"""Name the machine and the versions that a measurement was made with."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

PEERS = (
    "scikit-learn",
    "thrml",
    "nflows",
    "zuko",
    "normflows",
    "transformers",
    "llama_cpp_python",
    "ctranslate2",
    "jax",
)
PACKAGES = ("fastgen", "torch", "numpy", "scipy", *PEERS, "triton")


def machine(device: str) -> dict[str, str | int | float]:
    """Return the CPU's name, its cores, the memory in GiB, the system and, on a GPU, the GPU's name."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    found: dict[str, str | int | float] = {
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of each package a measurement can depend on, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
