"""Settings for the whole run: Triton kernels are interpreted, so that they run on tensors of the CPU."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
