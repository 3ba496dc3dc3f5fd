"""Which implementation of an op runs.

On the CPU: native, else reference. On a GPU: cuda or triton, whichever the op has, else reference.
`use_backend` insists on one; `backends` tells what is usable here, and why the rest is not.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import torch

from fastgen import native

NAMES = ("reference", "native", "triton", "cuda")
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}

_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
_warned: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Status:
    """Whether one implementation of an op can run on a device here; if not, `reason` says why."""

    op: str
    backend: str
    device: str
    usable: bool
    reason: str


def register(op: str, backend: str, function: Callable[..., Any]) -> None:
    """Declare that `op` has an implementation in `backend`; `function` takes the op's checked arguments."""
    _implementations.setdefault(op, {})[backend] = function


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which takes tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def cuda_library_missing() -> str:
    """Why the CUDA kernels cannot run here; empty when they can."""
    if native.module is None:
        return native.reason
    if not native.module.build_info()["cuda"]:
        return "this build has no CUDA kernels: reinstall with nvcc and a CUDA build of torch"
    return "" if torch.cuda.is_available() else "torch finds no GPU"


def _why_not(op: str, backend: str, device: str) -> str:
    if backend not in _implementations.get(op, {}):
        return f"{op} has no {backend} implementation"
    if backend == "native":
        return f"native runs on the CPU, not on {device}" if device != "cpu" else native.missing(op)
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed: pip install 'fastgen[triton]'"
        if device == "cpu" and not interpreting():
            return "triton runs on GPUs (TRITON_INTERPRET=1, set before import, interprets it on the CPU)"
        return "" if device == "cpu" or torch.cuda.is_available() else "torch finds no GPU"
    if backend == "cuda":
        return f"cuda runs on GPUs, not on {device}" if device != "cuda" else cuda_library_missing()
    return ""


def usable(op: str, backend: str, device: str) -> bool:
    """Whether `backend` can run `op` on tensors of `device` ("cpu" or "cuda") here."""
    return not _why_not(op, backend, device)


def backends() -> list[Status]:
    """One row for each op, implementation and device: usable or not, and why not."""
    return [
        Status(op, backend, device, not (reason := _why_not(op, backend, device)), reason)
        for op in sorted(_implementations)
        for backend in NAMES
        if backend in _implementations[op]
        for device in ("cpu", "cuda")
    ]


def choose(op: str, device: str) -> tuple[str, Callable[..., Any]]:
    """Name and function of the implementation that runs `op` on `device`.

    Raises:
        RuntimeError: `use_backend` insists on one that cannot run here; the message says why.
    """
    if (wanted := use_backend.insisted) is not None:
        if reason := _why_not(op, wanted, device):
            raise RuntimeError(f"use_backend({wanted!r}) was asked for, but {reason}")
        return wanted, _implementations[op][wanted]
    for backend in _PREFERENCE.get(device, ("reference",)):
        reason = _why_not(op, backend, device)
        if not reason:
            return backend, _implementations[op][backend]
        if backend in _implementations[op]:
            _warn_once(op, backend, device, reason)
    raise RuntimeError(f"{op} has no implementation for device {device}")


def native_is_welcome() -> bool:
    """Whether nobody insists on another implementation than native."""
    return use_backend.insisted in (None, "native")


def _warn_once(op: str, backend: str, device: str, reason: str) -> None:
    if (op, backend, device) not in _warned:
        _warned.add((op, backend, device))
        message = f"fastgen runs {op} on {device} without its {backend} implementation: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


class use_backend:
    """Insist on one implementation: `use_backend("native")` from here on, or `with use_backend("native"):`.

    Args:
        name: "reference", "native", "triton", "cuda", or None to choose the fastest usable one again.

    Raises:
        ValueError: no such backend. Ops raise RuntimeError, with the reason, where it cannot run.
    """

    insisted: ClassVar[str | None] = None

    def __init__(self, name: str | None) -> None:
        if name is not None and name not in NAMES:
            raise ValueError(f"backend is {name!r}, wanted one of {', '.join(NAMES)} or None")
        self._before, use_backend.insisted = use_backend.insisted, name

    def __enter__(self) -> None:
        """Nothing to do: the setting holds since construction."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the setting from before."""
        use_backend.insisted = self._before
