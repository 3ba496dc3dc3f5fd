"""Settings for the whole run: Triton kernels are interpreted; workers do not get in each other's way."""

import contextlib
import os
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers of pytest-xdist share the cores, one thread each; tests of threads set their own number. Compilers
# keep what they made in a directory of the worker's.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
CACHE = Path(__file__).parents[1] / "build" / "test-cache" / WORKER
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor"))
os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
if WORKER != "main":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides once, when it is imported: before a test takes the variable away.
with contextlib.suppress(ImportError):
    import triton.language  # noqa: F401
