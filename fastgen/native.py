"""The C++ extension: loaded if it is there, and if not, the reason in plain words."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fastgen._native"), ""
    except ModuleNotFoundError:
        return None, "the C++ extension is not built: reinstall fastgen where a C++20 compiler is found"
    except ImportError as error:
        return (
            None,
            f"the C++ extension does not load ({error}): reinstall fastgen against torch {torch.__version__}",
        )


module, reason = _load()


def missing(op: str) -> str:
    """Why the C++ kernel of an op cannot run; empty when it can."""
    if module is None or hasattr(torch.ops.fastgen_native, op.rstrip("_")):  # `op_` is `op` in place
        return reason
    return f"the C++ extension is older than this package and has no {op}: reinstall fastgen"


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
