"""Hold every runtime in the process to the same number of cores."""

import contextlib
import os
from collections.abc import Iterator

import torch


def available() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Run with `threads` threads in torch, OpenMP and BLAS, and on `threads` cores.

    The cores bind runtimes that have no switch of their own: XLA sizes its pool, when JAX is first used, by
    NPROC or by the cores it may run on.
    """
    if not 1 <= threads <= available():
        raise ValueError(
            f"threads must be between 1 and {available()} (the cores this process may use), got {threads}"
        )
    before, nproc = torch.get_num_threads(), os.environ.get("NPROC")
    with contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, before)
        undo.callback(_set_nproc, nproc)
        if hasattr(os, "sched_setaffinity"):
            cores = os.sched_getaffinity(0)
            undo.callback(os.sched_setaffinity, 0, cores)
            os.sched_setaffinity(0, sorted(cores)[:threads])
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits  # noqa: PLC0415 (comes with scikit-learn)

            undo.enter_context(threadpool_limits(threads))
        torch.set_num_threads(threads)
        _set_nproc(str(threads))
        yield


def _set_nproc(value: str | None) -> None:
    if value is None:
        os.environ.pop("NPROC", None)
    else:
        os.environ["NPROC"] = value
