"""The C++ extension: loaded if it is there, and if not, the reason in plain words."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[1]  # the checkout, where fastgen runs from one


def mend() -> str:
    """The command that builds the C++ extension anew."""
    what = f"-e {ROOT}" if (ROOT / "setup.py").exists() else "--force-reinstall --no-deps fastgen"
    return f"{sys.executable} -m pip install --no-build-isolation {what}"


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fastgen._native"), ""
    except ModuleNotFoundError:
        return None, f"the C++ extension is not built; where there is a C++20 compiler, run: {mend()}"
    except ImportError as error:
        why = f"the C++ extension does not load with torch {torch.__version__} ({error})"
        return None, f"{why}; to build it anew, run: {mend()}"


module, reason = _load()


def missing(op: str) -> str:
    """Why the C++ kernel of an op cannot run; empty when it can."""
    if module is None or hasattr(torch.ops.fastgen_native, op.rstrip("_")):  # `op_` is `op` in place
        return reason
    return f"the C++ extension is older than this package and has no {op}; to build it anew, run: {mend()}"


def outdated() -> str:
    """Why the extension is not that of the checkout it lies in, and what to do; empty if it seems to be."""
    if module is None or not (ROOT / "setup.py").exists():
        return ""
    built = Path(module.__file__ or "").stat().st_mtime
    newer = [path for path in sorted((ROOT / "csrc").rglob("*.*")) if path.stat().st_mtime > built]
    if not newer:
        return ""
    return f"older than {newer[0].relative_to(ROOT)}; to build it anew, run: {mend()}"


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the C++ kernels with another instruction set, for tests and benchmarks.

    Args:
        name: one of `usable_isas()`: "baseline", "avx2", "avx512".

    Raises:
        RuntimeError: the extension is not there.
        ValueError: this CPU has no such instruction set.
    """
    if module is None:
        raise RuntimeError(reason)
    before = module.use_isa(name)
    try:
        yield
    finally:
        module.use_isa(before)


def usable_isas() -> list[str]:
    """Instruction sets that are built and usable here, slowest first; empty without the extension."""
    return [] if module is None else list(module.usable_isas())
