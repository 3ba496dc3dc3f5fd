"""Settings for the whole run: Triton kernels are interpreted, so that they run on tensors of the CPU."""

import contextlib
import os

os.environ.setdefault("TRITON_INTERPRET", "1")

# Triton decides once, when it is imported: before a test takes the variable away.
with contextlib.suppress(ImportError):
    import triton.language  # noqa: F401
