"""Scale and shift of foreign flows, in whatever dtypes their networks answer."""

from typing import Any

import torch
from torch import Tensor

from fastgen.ops import affine_coupling


def couple(x: Tensor, params: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """`affine_coupling` in x's dtype; float16, which the op does not take, is computed in float32."""
    if x.dtype != torch.float16:
        return affine_coupling(x, params.to(x.dtype), **options)
    y, log_det = affine_coupling(x.float(), params.float(), **options)
    return y.to(x.dtype), log_det.to(x.dtype)
