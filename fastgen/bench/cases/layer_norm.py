"""Layer norms of a transformer's rows, one row and many, and the gradients."""

from functools import partial
from typing import Any

from torch import Tensor

import fastgen
from fastgen.bench.cases.rms_norm import norm_case
from fastgen.bench.peers import torch_norm


def _norm(x: Tensor, weight: Tensor, **options: Any) -> Any:
    """The layer norm whose bias is its weight, so that the inputs are those of rms_norm."""
    return fastgen.ops.layer_norm(x, weight, weight, **options)


_case = partial(norm_case, "layer_norm", _norm, torch_norm.layer_norm)

CASES = (
    _case(1, 768),
    _case(1, 768, "residual"),
    _case(512, 768),
    _case(512, 768, "residual"),
    _case(8192, 2048, "residual"),
    _case(4096, 768, "forward and backward"),
    _case(5, 37, quick=True),
    _case(3, 20, "residual", quick=True),
    _case(67, 19, "gradients", quick=True),
)
