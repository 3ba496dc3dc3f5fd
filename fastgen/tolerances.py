"""How far floating point results may lie apart: the one table, for the tests of ops and for benchmarks.

Against float64 an op may lose a small multiple of what PyTorch loses in the same dtype (`allowed`). Where
PyTorch has no such op the table says how much, in units of 1 + |wanted| if nothing else is said.
"""

import torch
from torch import Tensor

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16

ROUNDING = {F32: 2.0**-24, F64: 2.0**-53, BF16: 2.0**-8}
"""What rounding to a dtype may change a number by, as a share of it."""

FLOAT64: dict[str, dict[torch.dtype, float]] = {
    "affine_coupling": {F32: 3e-6, F64: 1e-14},
    "decode_attention": {F32: 2e-6},
    "invertible_linear": {F32: 2e-6, F64: 1e-14, BF16: 4e-3},
    "rq_spline": {F32: 1e-5, F64: 1e-9},  # of the largest value
}
"""An op against its formula in float64."""

INVERSE: dict[str, dict[torch.dtype, float]] = {
    "affine_coupling": {F32: 2e-5, F64: 5e-14, BF16: 0.1},
    "invertible_linear": {F32: 1e-5, F64: 1e-13, BF16: 0.1},
    "rq_spline": {F32: 2e-5, F64: 1e-12, BF16: 0.05},  # times the slope of the inverse
}
"""There and back again, against the beginning."""

REFERENCE: dict[str, dict[torch.dtype, float]] = {
    "attention": {F32: 2e-5, F64: 1e-13, BF16: 2e-2},
    "attention in Triton": {F32: 4e-6, F64: 1e-7, BF16: 3e-2},
    "made_inverse": {F32: 1e-4, F64: 1e-10},  # an error in one feature enters all later ones
    "rq_spline gradients": {F32: 2e-4, F64: 1e-11},  # of the largest
}
"""An op against its reference in the same dtype, which adds in another order; gradients as well."""

LIBRARY = {F32: 1e-5, F64: 1e-9}
"""A flow's op against that of nflows, normflows or zuko in the same dtype; gradients as well."""

MATCH = {
    # Log-determinants of thousands of elements are large sums, which PyTorch rounds in float32.
    "affine_coupling": (1e-4, 2e-3),
    "attention": (1e-4, 1e-4),
    "attention bfloat16": (2e-2, 2e-2),
    "conv_net": (1e-4, 1e-5),
    "decode_attention": (1e-4, 1e-5),
    "decode_attention bfloat16": (2e-2, 1e-2),
    "invertible_linear": (1e-4, 1e-4),
    "invertible_linear backward": (1e-3, 1e-3),
    "linear": (1e-5, 1e-5),
    "made_inverse": (1e-4, 1e-4),
    "made_inverse backward": (1e-3, 1e-3),
    "norm": (1e-5, 1e-5),
    "norm backward": (1e-4, 1e-4),
    "packed_linear": (1e-5, 1e-5),
    "packed_linear rounded inputs": (1e-5, 3e-4),  # to 16 bits
    "packed_linear int8": (1e-5, 5e-2),  # to 8 bits, which the reference does as well
    "rope": (1e-5, 1e-5),
    # Between two ways to round in float32, where bins are narrow and slopes steep.
    "rq_spline": (1e-4, 1e-3),
    "rq_spline forward and backward": (5e-3, 0.2),
    "rq_spline backward": (1e-3, 1e-3),
    "transformer": (2e-4, 2e-4),
    "transformer rounded inputs": (2e-4, 2e-3),
}
"""(rtol, atol) between fastgen and a peer of a benchmark, in float32 if nothing else is said."""


def allowed(theirs: Tensor, exact: Tensor, dtype: torch.dtype, *, losses: float, roundings: float) -> float:
    """The largest error that a result in `dtype` may have.

    Args:
        theirs: what PyTorch makes of the same inputs in `dtype`, or in what `dtype` is summed in.
        exact: the result in float64.
        losses: how many times the largest error of `theirs`.
        roundings: how many roundings of the largest value besides.
    """
    if not exact.numel():
        return 0.0
    lost = (theirs.double() - exact).abs().max()
    return float(losses * lost + roundings * ROUNDING[dtype] * exact.abs().max())
